"""What libraries say of a wrong config, made short."""

from __future__ import annotations

from fedpeft.core.errors import ConfigError


def lines_of(error: Exception) -> list[str]:
    """Return an error's problems, one line each."""
    return error.problems if isinstance(error, ConfigError) else [one_line(error)]


def one_line(error: BaseException) -> str:
    """Return the useful part of a library's message on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    skip = (
        "full_key",
        "object_type",
        "To append to your config",
        "Set the environment variable",
        "Config search path",
        "provider=",
        "hydra:",
        "^",
    )
    return " ".join(line for line in lines if not line.startswith(skip)) or type(error).__name__
