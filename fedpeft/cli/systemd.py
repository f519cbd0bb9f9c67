"""A systemd unit that runs ``fedpeft client`` from boot on."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

_UNIT = """[Unit]
Description=fedpeft client of {server}
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target

[Service]
User={user}
ExecStart={command}
Restart=always
RestartSec=30
# Wrong options stay wrong.
RestartPreventExitStatus=2
Nice=10
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=full

[Install]
WantedBy=multi-user.target"""


def unit(options: argparse.Namespace) -> str:
    """Return a unit file for these options, with every path made absolute.

    Args:
        options: of ``fedpeft client``.
    """
    words = [sys.executable, "-m", "fedpeft.cli.main", "client"]
    for name, value in vars(options).items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("check", "run", "text_column", "label_column") or value is None or value is False:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [word for one in value for word in (flag, one)]
        else:
            words += [flag, _absolute(value)]
    return _UNIT.format(server=options.server, user=getpass.getuser(), command=" ".join(map(_quoted, words)))


def _absolute(value: object) -> str:
    if isinstance(value, Path):
        return str(value.absolute())
    text = str(value)
    # A model or profile may be a path or a name.
    return str(Path(text).absolute()) if Path(text).exists() else text


def _quoted(word: str) -> str:
    """Return a word as systemd reads it back."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if any(c.isspace() or c in "\"'\\;" for c in word) else text
