"""The Hydra entry: ``python simulations/run.py OVERRIDES`` is ``fedpeft simulate OVERRIDES``."""

import sys

from fedpeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["simulate", *sys.argv[1:]]))
