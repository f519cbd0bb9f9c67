"""``fedpeft client --accelerator cuda`` where the CPU plays the card: machines that run this suite have none.

What the process does is the real thing, but for the moving of tensors; see ``tests/laws`` for that.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

from fedpeft.cli.main import main
from fedpeft.client import building, own, placing

RESERVED_BYTES = 123 * 2**20


def play() -> None:
    """Put the CPU in the place of a card."""
    placing.check_build = lambda name: None
    building.check_accelerator = lambda name: "a card"  # type: ignore[attr-defined]
    building.place = lambda tunable, device: tunable  # type: ignore[attr-defined]
    card = SimpleNamespace(reset_peak_memory_stats=lambda: None, max_memory_reserved=lambda: RESERVED_BYTES)
    own._cuda = lambda: card


if __name__ == "__main__":
    play()
    sys.exit(main(sys.argv[1:]))
