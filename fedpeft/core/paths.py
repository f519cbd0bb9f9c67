"""Where fedpeft's own files and the user's cache lie."""

from __future__ import annotations

import os
from pathlib import Path

from fedpeft.core.errors import ConfigError


def conf_dir() -> Path:
    """Return the folder of Hydra configs: inside the wheel, or at the top of a source checkout.

    Raises:
        ConfigError: neither exists, i.e. the installation is broken.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/config.yaml beside {package}: reinstall fedpeft")


def cache_dir() -> Path:
    """Return the folder for fetched models and data: ``$FEDPEFT_CACHE``, else ``~/.cache/fedpeft``."""
    return Path(os.environ.get("FEDPEFT_CACHE") or Path.home() / ".cache" / "fedpeft")
