"""A link is measured over a real connection on loopback; whoever says something else is refused."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from fedpeft.core.errors import ConfigError, FedPeftError
from fedpeft.device_profiles.link import measure_link, parse_address
from fedpeft.device_profiles.link_server import listen, serve
from fedpeft.device_profiles.link_wire import MAX_SESSION, MAX_TRANSFER, pattern

HEADER = struct.Struct(">4sc3xQ")


class Server:
    """A link server in a thread, and what it told."""

    def __init__(self, session_s: float = 20.0) -> None:
        self.told: list[str] = []
        self.stop = threading.Event()
        self.listener = listen("127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self._thread = threading.Thread(
            target=serve,
            args=(self.listener,),
            kwargs={"stop": self.stop, "told": self.told.append, "session_s": session_s},
        )
        self._thread.start()

    def close(self) -> None:
        """End it, and wait until what it told is complete."""
        self.stop.set()
        self._thread.join()
        self.listener.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(parse_address(self.address), timeout=10)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def request(verb: bytes, length: int, magic: bytes = b"FPL1") -> bytes:
    return HEADER.pack(magic, verb, length)


def received(connection: socket.socket) -> bytes:
    """Return everything until the other end hangs up; a reset says so too."""
    found = b""
    try:
        while part := connection.recv(2**16):
            found += part
    except ConnectionResetError:
        pass
    return found


def test_a_link_has_round_trips_and_rates(server: Server) -> None:
    link = measure_link(server.address, budget_s=0.05)
    assert link.rtt_ms > 0 and link.down_payload_mbps > 0 and link.up_payload_mbps > 0
    assert 2**15 <= link.down_bytes <= MAX_TRANSFER and 2**15 <= link.up_bytes <= MAX_TRANSFER
    server.close()
    assert len(server.told) == 1 and "MB both ways" in server.told[0]


def test_a_download_is_the_pattern(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(request(b"D", 2**16 + 5))
        connection.shutdown(socket.SHUT_WR)
        assert received(connection) == pattern() + pattern()[:5]


def test_the_pattern_does_not_compress() -> None:
    import zlib

    assert len(pattern()) == 2**16
    assert len(zlib.compress(pattern())) >= 2**16


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak"),
        (request(b"X", 5), "does not speak"),
        (request(b"D", 5, magic=b"FPL2"), "does not speak"),
        (request(b"D", 5)[:5] + b"abc" + request(b"D", 5)[8:], "does not speak"),
        (request(b"D", MAX_TRANSFER + 1), "bytes were asked for"),
        (request(b"U", 2**63), "bytes were asked for"),
        (request(b"D", 0), "bytes were asked for"),
        (request(b"P", 1), "bytes were asked for"),
        (request(b"P", 0)[:7], "in the middle of a request"),
        (request(b"U", 8) + b"wrong!!!", "other bytes came"),
        (request(b"U", 8) + pattern()[:3], "ended after 3 of 8"),
    ],
)
def test_whatever_else_is_said_ends_the_connection(server: Server, said: bytes, why: str) -> None:
    """And the next client is served."""
    with server.connect() as connection:
        connection.sendall(said)
        # The server may have hung up already.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        assert received(connection) == b""
    with server.connect() as connection:
        connection.sendall(request(b"P", 0))
        assert connection.recv(16) == request(b"P", 0)
    server.close()
    assert "refused" in server.told[0] and why in server.told[0]


def test_a_connection_carries_no_more_than_it_may(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpeft.device_profiles import link_wire

    assert MAX_SESSION == 2**30
    monkeypatch.setattr(link_wire, "MAX_SESSION", 1000)
    with server.connect() as connection:
        connection.sendall(request(b"D", 600) + request(b"D", 600))
        assert len(received(connection)) == 600
    server.close()
    assert "more than 1000 bytes" in server.told[0]


def test_a_connection_that_only_stands_there_is_given_up() -> None:
    server = Server(session_s=0.05)
    try:
        with server.connect() as connection:
            assert received(connection) == b""
    finally:
        server.close()
    assert "refused" in server.told[0]


def test_a_server_that_answers_otherwise_is_named() -> None:
    """It takes the first ping for a download of nothing that it knows."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                received(connection)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(FedPeftError, match=r"cannot be measured: the other end does not speak"):
            measure_link(address, budget_s=0.05)
        thread.join()


def test_nobody_there_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    with pytest.raises(FedPeftError, match=rf"the link to 127.0.0.1:{free} cannot be measured: .*serve-link"):
        measure_link(f"127.0.0.1:{free}", budget_s=0.05)


@pytest.mark.parametrize("text", ["", "host", "host:", ":7411", "host:0", "host:65536", "host:x", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_address(text)


def test_addresses() -> None:
    assert parse_address("box.example:1") == ("box.example", 1)
    assert parse_address("[::1]:7411") == ("::1", 7411)


def test_a_port_that_is_taken_is_one_line(server: Server) -> None:
    port = parse_address(server.address)[1]
    with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port}"):
        listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot listen"):
        listen("127.0.0.1", 99999)
