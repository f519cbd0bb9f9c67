"""Flower's SuperLink, with a door in front of its Control API.

Flower serves that API at the port that devices use, and asks nobody who calls: whoever reaches the port could register
devices and start runs of code. Here it answers only who knows the secret of the server's state folder.
"""

from __future__ import annotations

import hmac
import secrets
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fedpeft.engines.deploy.folder import locked, read_file, write_file

ADMIN_SECRET = "admin.secret"
CONTROL = "control"
FORBIDDEN = 403

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def admin_secret(folder: Path) -> bytes:
    """Return the secret of a server's state folder, made on first use.

    Raises:
        ConfigError: the file cannot be written or read, or others can read it.
    """
    path = folder / ADMIN_SECRET
    with locked(folder, ADMIN_SECRET):
        if not path.exists():
            write_file(path, secrets.token_hex(32).encode(), private=True)
    return read_file(path, private=True)


class Door:
    """An ASGI middleware that refuses the Control API to who does not bring the secret.

    Args:
        app: what stands behind.
        header: name of the header that must hold the secret, in lower case.
        secret: the secret.
    """

    def __init__(self, app: Any, header: str, secret: bytes) -> None:
        self._app, self._header, self._secret = app, header.encode(), secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http" or not _is_control(str(scope.get("path", ""))) or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": FORBIDDEN, "headers": headers})
        await send({"type": "http.response.body", "body": b"for the administrator of this server"})

    def _is_known(self, scope: Scope) -> bool:
        brought = [value for name, value in scope["headers"] if name == self._header]
        return len(brought) == 1 and hmac.compare_digest(brought[0], self._secret)


def _is_control(path: str) -> bool:
    # Whatever a router makes of doubled slashes, dots or upper case: no path of the devices' own API has the word.
    return CONTROL in path.lower()


def main(argv: list[str]) -> None:
    """Run a SuperLink; ``python -m fedpeft.engines.deploy.superlink FOLDER -- OPTIONS OF FLOWER-SUPERLINK``."""
    from fedpeft.engines.flower_private import run_superlink

    folder, separator, *options = argv
    if separator != "--":
        raise SystemExit("usage: python -m fedpeft.engines.deploy.superlink FOLDER -- OPTIONS")
    run_superlink(options, Door, admin_secret(Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
