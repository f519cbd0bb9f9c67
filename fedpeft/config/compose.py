"""Composing the config with Hydra, all mistakes at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from fedpeft.config.check import check
from fedpeft.config.messages import lines_of, one_line
from fedpeft.config.values import Config
from fedpeft.core.errors import ConfigError
from fedpeft.core.paths import conf_dir


def compose(overrides: Sequence[str]) -> Config:
    """Compose ``conf/config.yaml`` with command-line overrides and resolve it to plain data.

    Raises:
        ConfigError: every override that Hydra refuses and every value that is wrong in the rest, one line each.
    """
    try:
        return _compose(overrides)
    except Exception as error:
        # What an override may say depends on the members chosen: engine.address is there with engine=ray alone.
        searchpath = [one for one in overrides if one.startswith("hydra.")]
        choices = [one for one in overrides if _is_choice(one) and not _refusal(one, searchpath)]
        refused = {one: text for one in overrides if (text := _refusal(one, [*searchpath, *choices]))}
        problems = [f"{override}: {text}" for override, text in refused.items()]
        if refused:
            # Hydra stops at the first override it refuses; the others may be wrong as well.
            problems += _problems_of([one for one in overrides if one not in refused])
        raise ConfigError(problems or lines_of(error)) from error


def _compose(overrides: Sequence[str]) -> Config:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        cfg = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.pop("hydra")
        return plain(cfg)


def _is_choice(override: str) -> bool:
    """Whether an override takes a member of a group, e.g. ``engine=ray``."""
    key, equals, _ = override.lstrip("+").partition("=")
    return bool(equals) and (conf_dir() / key).is_dir()


def _refusal(override: str, beside: Sequence[str]) -> str | None:
    """Return why Hydra refuses an override that stands beside sound ones, None if it takes it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        try:
            hydra_compose("config", overrides=[*(one for one in beside if one != override), override])
        except Exception as error:
            key = override.split("=", 1)[0].lstrip("+~")
            close = difflib.get_close_matches(key, _known_keys(hydra_compose("config", list(beside))), n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close and "Could not override" in str(error) else ""
            return one_line(error) + hint
    return None


def _known_keys(cfg: Any, path: str = "") -> list[str]:
    from omegaconf import DictConfig

    keys = [f"{path}{key}" for key in cfg]
    return keys + [
        k for key in cfg if isinstance(cfg._get_node(key), DictConfig) for k in _known_keys(cfg[key], f"{path}{key}.")
    ]


def _problems_of(overrides: Sequence[str]) -> list[str]:
    try:
        check(_compose(overrides))
    except Exception as error:
        return lines_of(error)
    return []


def plain(cfg: Any) -> Config:
    """Resolve a DictConfig to plain dicts, lists and scalars.

    Raises:
        ConfigError: values that are still missing (``???``), all of them, or an interpolation that leads nowhere.
    """
    from omegaconf import OmegaConf

    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError([f"{key} has no value: give {key}=..." for key in missing])
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(one_line(error)) from error
