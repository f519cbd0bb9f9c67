"""The doctor names what is wrong with a device in one line, and says what to do."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fedpeft.client.fence import Fence
from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy.doctor import Check, Device, examine
from fedpeft.engines.deploy.keys import Certificates, ensure_certificates, make_device_key
from fedpeft.engines.deploy.node import free_port
from fedpeft.engines.deploy.reach import clock_found, reach, split_address


@contextmanager
def listening(files: Certificates | None, *, ahead_s: float = 0.0, says: str | None = None) -> Iterator[str]:
    """Serve one connection: TLS by these certificates, and an answer whose clock is so far ahead."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead_s), usegmt=True)
    answer = says if says is not None else f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n"

    def serve() -> None:
        try:
            connection, _ = listener.accept()
            with connection:
                if files is not None:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(files.certificate, files.key)
                    connection = context.wrap_socket(connection, server_side=True)
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer.encode())
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join()


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return ensure_certificates(tmp_path / "server")


def states(server: str, ca: Path | None) -> dict[str, tuple[str, str]]:
    return {name: (state, text) for name, state, text in reach(server, ca)}


def test_a_good_server_is_good(files: Certificates) -> None:
    with listening(files) as server:
        found = states(server, files.ca)
    assert [state for state, _ in found.values()] == ["ok", "ok", "ok"] and set(found) == {"server", "tls", "clock"}


def test_a_certificate_of_another_authority(files: Certificates, tmp_path: Path) -> None:
    with listening(files) as server:
        state, text = states(server, ensure_certificates(tmp_path / "other").ca)["tls"]
    assert state == "problem" and "another authority" in text


@pytest.mark.parametrize(("days", "said"), [(-700, "has expired"), (0, None)])
def test_a_certificates_time(tmp_path: Path, days: int, said: str | None) -> None:
    """The authority's holds for ten years, the server's for one."""
    files = ensure_certificates(tmp_path / "old", now=datetime.now(UTC) + timedelta(days=days))
    with listening(files) as server:
        state, text = states(server, files.ca)["tls"]
    assert (state, said is None or said in text) == ("ok" if said is None else "problem", True)


def test_an_authority_that_holds_later_says_that_the_clock_is_wrong(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path / "new", now=datetime.now(UTC) + timedelta(days=2))
    with pytest.raises(ConfigError, match=r"holds from .* only.*timedatectl"):
        list(reach("127.0.0.1:1", files.ca))


def test_a_server_certificate_that_holds_later(files: Certificates, tmp_path: Path) -> None:
    later = datetime.now(UTC) + timedelta(days=360)
    files.certificate.unlink()
    files.key.unlink()
    with listening(ensure_certificates(files.ca.parent, now=later)) as server:
        assert "clock is wrong" in states(server, files.ca)["tls"][1]


def test_a_name_that_the_certificate_does_not_have(files: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    known = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more: known("127.0.0.1" if host == "elsewhere.test" else host, *more)
    )
    with listening(files) as server:
        state, text = states(server.replace("127.0.0.1", "elsewhere.test"), files.ca)["tls"]
    assert state == "problem" and "does not name elsewhere.test" in text


def test_a_server_without_tls(files: Certificates) -> None:
    with listening(None, says="HTTP/1.1 400 no\r\n\r\n") as server:
        state, text = states(server, files.ca)["tls"]
    assert state == "problem" and "speaks no TLS" in text
    with listening(None) as server:
        assert states(server, None)["tls"][0] == "warning"


def test_nobody_listens(files: Certificates) -> None:
    state, text = states(f"127.0.0.1:{free_port()}", files.ca)["server"]
    assert state == "problem" and "nothing listens" in text


@pytest.mark.parametrize(
    ("ahead_s", "state"), [(0, "ok"), (3, "ok"), (5, "warning"), (7, "problem"), (-200, "warning"), (-306, "problem")]
)
def test_clocks_may_differ_by_what_signatures_may(ahead_s: float, state: str) -> None:
    """A signature holds from 5 s before the server's time to 305 s after it; the server tells whole seconds."""
    assert clock_found(ahead_s)[1] == state


def test_a_server_whose_clock_is_behind_sees_this_device_ahead(files: Certificates) -> None:
    with listening(files, ahead_s=-60) as server:
        state, text = states(server, files.ca)["clock"]
    assert state == "problem" and "ahead of" in text


@pytest.mark.parametrize("given", ["host", "host:", ":8000", "host:x", "host:0", "host:70000"])
def test_an_address_is_host_and_port(given: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(given)


def test_addresses() -> None:
    assert split_address("[::1]:8000") == ("::1", 8000)
    assert split_address("a.example:443") == ("a.example", 443)


def one(checks: list[Check], name: str) -> Check:
    found = [check for check in checks if check.name == name]
    assert len(found) == 1
    return found[0]


def device(tmp_path: Path, data: Path, **more: object) -> Device:
    settings: dict[str, object] = {"server": f"127.0.0.1:{free_port()}", "ca": None, "key": None, "data": data}
    return Device(**{**settings, "state_dir": tmp_path / "state", **more})  # type: ignore[arg-type]


def test_data_is_read_with_the_columns_that_were_asked_for(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n')
    assert "2 examples" in one(examine(device(tmp_path, data)), "data").text
    wrong = one(examine(device(tmp_path, data, text_columns=["review"])), "data")
    assert wrong.state == "problem" and "'review'" in wrong.text and "there are text, label" in wrong.text
    data.write_text('{"text": "good", "label": 1}\n{"text": null, "label": 0}\n')
    assert "rows without text" in one(examine(device(tmp_path, data)), "data").text
    data.unlink()
    assert one(examine(device(tmp_path, data)), "data").state == "problem"


def test_a_key_that_others_can_read_is_a_problem(tmp_path: Path) -> None:
    key = tmp_path / "device.key"
    make_device_key(key, name="pi", client_id=3)
    good = one(examine(device(tmp_path, tmp_path, key=key)), "key")
    assert good.state == "ok" and "of pi, client 3" in good.text
    key.chmod(0o644)
    assert one(examine(device(tmp_path, tmp_path, key=key)), "key").state == "problem"


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert one(examine(device(tmp_path, tmp_path, model=str(folder))), "model").state == "problem"
    save_file({"w": np.zeros(500_000, np.float32)}, folder / "model.safetensors")
    assert "2 MB" in one(examine(device(tmp_path, tmp_path, model=str(folder))), "model").text
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    cut = one(examine(device(tmp_path, tmp_path, model=str(folder))), "model")
    assert cut.state == "problem" and "is damaged" in cut.text and "copy the whole folder again" in cut.text
    assert one(examine(device(tmp_path, tmp_path, model="some/hub-id")), "model").state == "warning"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch may find a card")
def test_a_card_that_torch_cannot_use_is_a_problem(tmp_path: Path) -> None:
    card = one(examine(device(tmp_path, tmp_path, accelerator="cuda")), "card")
    assert card.state == "problem" and "built for the CPU alone" in card.text


def test_everything_is_looked_at_though_some_of_it_is_wrong(tmp_path: Path) -> None:
    names = [check.name for check in examine(device(tmp_path, tmp_path / "missing"))]
    assert names == ["versions", "machine", "key", "server", "data", "model", "memory", "disk", "round"]


def test_a_round_is_predicted_from_profile_and_run(tmp_path: Path, toy: list[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n' * 20)
    run = [*toy, "client.local_steps=null", "client.local_epochs=2", "client.batch_size=8"]
    known = device(tmp_path, data, profile="rpi5_8gb", run=run)
    found = one(examine(known), "round")
    assert found.state == "ok" and "for 10 steps of 8 texts of 16 tokens" in found.text and "MiB" in found.text
    slow = one(examine(replace(known, run=[*run, "client.local_epochs=200"])), "round")
    assert seconds(slow) > 10 * seconds(found)
    large = one(examine(replace(known, profile="phone_low", run=[*run, "client.batch_size=32768"])), "round")
    assert large.state == "warning" and "devices.fit=true" in large.text
    wrong = one(examine(replace(known, run=["method.ranks_=8"])), "round")
    assert wrong.state == "problem" and "method.ranks_" in wrong.text
    assert "fedpeft devices bench" in one(examine(replace(known, profile=None)), "round").text
    there = [*run, "model.path=nobody/has-this"]
    assert "not here yet" in one(examine(replace(known, run=there)), "round").text


def test_a_run_that_this_device_would_refuse_is_a_problem(tmp_path: Path, toy: list[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n' * 20)
    fence = Fence(max_steps=1, max_seconds=1e-3, max_memory_mb=100, require_epsilon=8)
    checks = list(examine(device(tmp_path, data, profile="rpi5_8gb", run=toy, fence=fence)))
    refusals = " ".join(check.text for check in checks if check.name == "round" and check.state == "problem")
    for option in ("--max-steps", "--max-seconds", "--max-memory-mb", "--require-epsilon"):
        assert option in refusals


def test_whatever_a_library_says_is_one_line_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    data = tmp_path / "data.parquet"
    data.write_bytes(b"x")
    found = {check.name: check for check in examine(device(tmp_path, data, profile="rpi5_8gb", run=()))}
    assert found["data"].state == found["round"].state == "problem" and "\n" not in found["round"].text
    assert found["disk"].state == "ok"
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "holds no examples" in one(examine(device(tmp_path, empty, profile="rpi5_8gb")), "round").text


def seconds(check: Check) -> float:
    return float(check.text.split()[1].replace(",", ""))
