"""Can the server be reached, is it the one that it should be, and does its clock agree with ours?"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

from fedpeft.core.errors import ConfigError, printable
from fedpeft.engines.deploy.whereabouts import split_address

Found = tuple[str, Literal["ok", "warning", "problem"], str]
"""Name, state and text of a check."""
EARLY_S, LATE_S = 5.0, 305.0
"""A server takes a signature whose time is up to 5 s ahead of its clock or 305 s behind it."""
_TIMEOUT_S = 10.0
_NOT_YET_VALID, _EXPIRED, _NAME_MISMATCH, _ADDRESS_MISMATCH = 9, 10, 62, 64
_CLOCK = "set this device's clock: timedatectl set-ntp true"


def reach(server: str, ca: Path | None) -> Iterator[Found]:
    """Connect to a server as a client does, and yield what was found.

    Args:
        server: ``host:port``.
        ca: the authority's certificate; None for a connection without TLS.

    Raises:
        ConfigError: the address is none, or the certificate cannot be read.
    """
    host, port = split_address(server)
    context = None if ca is None else _context(ca)
    try:
        plain = socket.create_connection((host, port), timeout=_TIMEOUT_S)
    except OSError as error:
        yield "server", "problem", f"{server}: {_unreachable(error)}"
        return
    with plain:
        yield "server", "ok", f"{server} answers"
        connection: socket.socket = plain
        if context is None:
            yield "tls", "warning", "none: who is on the way can read and change everything (set --ca)"
        else:
            try:
                connection = context.wrap_socket(plain, server_hostname=host)
            except (ssl.SSLError, OSError) as error:
                yield "tls", "problem", _tls_text(error, host)
                return
            yield "tls", "ok", f"the certificate comes from {ca} and names {host}"
        with connection:
            yield _clock(connection, host, datetime.now(UTC))


def _context(ca: Path) -> ssl.SSLContext:
    from fedpeft.engines.deploy.certificates import check_peer_certificate
    from fedpeft.engines.deploy.folder import read_file

    check_peer_certificate(read_file(ca), what=str(ca))
    try:
        return ssl.create_default_context(cafile=str(ca))
    except ssl.SSLError as error:
        raise ConfigError(f"{ca} is no certificate (copy ca.crt from the server again)") from error


def _unreachable(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host (look at the spelling, or give the address as numbers)"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (start fedpeft server, or look at the port)"
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT_S:.0f} s (look at the network and at the server's firewall)"
    return f"{printable(str(error))} (look at the network)"


def _tls_text(error: Exception, host: str) -> str:
    code = getattr(error, "verify_code", None)
    if code == _EXPIRED:
        return f"the server's certificate has expired, or the clock is wrong ({_CLOCK}; restart the server to renew it)"
    if code == _NOT_YET_VALID:
        return f"the server's certificate does not hold yet, so the clock is wrong ({_CLOCK})"
    if code in (_NAME_MISMATCH, _ADDRESS_MISMATCH):
        return f"the server's certificate does not name {host} (use the name it was made for, or name this one there)"
    if code is not None:
        return "the server's certificate comes from another authority (copy ca.crt from the server, or mistrust it)"
    return f"the server speaks no TLS: {printable(str(error), 80)} (is it fedpeft server, and is the port right?)"


def _clock(connection: socket.socket, host: str, now: datetime) -> Found:
    connection.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    try:
        head = connection.recv(1 << 14).decode("latin-1")
    except OSError as error:
        return "clock", "warning", f"the server did not answer over HTTP: {printable(str(error), 80)}"
    dates = [line.partition(":")[2].strip() for line in head.split("\r\n") if line.lower().startswith("date:")]
    try:
        ahead_s = (now - parsedate_to_datetime(dates[0])).total_seconds()
    except (IndexError, ValueError):
        return "clock", "warning", "the server does not say what time it is, so the clock could not be compared"
    return clock_found(ahead_s)


def clock_found(ahead_s: float) -> Found:
    """Return what it means that this device's clock is so many seconds ahead of the server's.

    The server tells whole seconds only, so that up to one second ahead may be none.
    """
    how = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's"
    if ahead_s > EARLY_S + 1 or ahead_s < -LATE_S:
        return "clock", "problem", f"{how}: the server will refuse this device ({_CLOCK})"
    if ahead_s > EARLY_S / 2 + 1 or ahead_s < -LATE_S / 2:
        return "clock", "warning", f"{how}: soon the server will refuse this device ({_CLOCK})"
    return "clock", "ok", "agrees with the server's to a few seconds" if abs(ahead_s) < 3 else how
