"""The configuration: composed once by Hydra, checked as a whole, then plain data."""

from fedpeft.config.build import build, build_if_named, foreign
from fedpeft.config.check import check
from fedpeft.config.compose import compose, plain
from fedpeft.config.values import LAUNCH_KEYS, Config, config_hash, differences, is_deployed, look_up, to_json

__all__ = [
    "LAUNCH_KEYS",
    "Config",
    "build",
    "build_if_named",
    "check",
    "compose",
    "config_hash",
    "differences",
    "foreign",
    "is_deployed",
    "look_up",
    "plain",
    "to_json",
]
