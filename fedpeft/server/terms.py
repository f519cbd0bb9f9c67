"""What a run's privacy promise is made of, kept beside its checkpoints: a resumed run may not change it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft import config as cfg
from fedpeft.core.errors import PrivacyError
from fedpeft.privacy.client_level import ClientLevel
from fedpeft.privacy.example_level import ExampleLevel
from fedpeft.privacy.local import Local
from fedpeft.privacy.settings import delta_for
from fedpeft.privacy.statement import STATEMENT, TERMS

HEADS = "books.heads"
"""Name, in a checkpoint, of the last line of each client's ledger."""
KEPT = "books.terms"
"""Name, in a checkpoint, of the terms."""
DONE = "books.round"
"""Name, in a checkpoint, of the last round that was done: ledgers may know later ones."""
LEDGER_HEAD = "privacy.ledger_head"
"""Name, in a checkpoint, of the last line of the server's own ledger."""

Terms = Mapping[str, Any]


def level_of(config: Mapping[str, Any]) -> Any:
    """Return the level of privacy that a plain config builds, None for none."""
    return cfg.build_if_named(config["privacy"])


def terms_of(level: Any, config: Mapping[str, Any]) -> Terms:
    """Return what a promise depends on, by the names of the settings; {} without privacy.

    Noise that clients fit to their budget depends on the number of rounds, which is then one of them: a client knows
    only the config, and would draw other noise for other rounds. The server keeps the noise that it began with.

    Args:
        level: a built level of privacy, None for none.
        config: the plain config.
    """
    if level is None:
        return {}
    client, num_clients = config["client"], int(config["num_clients"])
    found: dict[str, Any] = {
        "run_id": config["run_id"],
        "privacy": level.name,
        "privacy.epsilon": level.epsilon,
        "privacy.noise_multiplier": level.noise_multiplier,
        "privacy.delta": level.delta,
    }
    if isinstance(level, ExampleLevel):
        found |= {f"client.{name}": client[name] for name in ("batch_size", "local_steps", "local_epochs")}
        found["privacy.accountant"] = level.accountant
    else:
        found |= {"privacy.delta": delta_for(level.delta, num_clients), "num_clients": num_clients}
    if isinstance(level, ClientLevel):
        found["cohort_size"] = int(config["cohort_size"])
    if isinstance(level, ExampleLevel | Local) and level.noise_multiplier is None:
        found["rounds"] = int(config["rounds"])
    return found


def read_promise(run_dir: Path) -> dict[str, Any]:
    """Return what ``privacy.json`` holds, {} where there is none.

    Raises:
        PrivacyError: it cannot be read.
    """
    path = run_dir / STATEMENT
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise TypeError("no JSON object")
    except (OSError, ValueError, TypeError) as error:
        raise PrivacyError(f"{path} cannot be read ({error}): restore it, or start a new run") from error
    return found


def check_terms(config: Mapping[str, Any], level: Any, state: Mapping[str, Any]) -> None:
    """Refuse to go on under another promise than the run began with.

    Args:
        config: the plain config, ``run_dir`` filled in.
        level: its built level of privacy, None for none.
        state: of the checkpoint that the run goes on from, {} where it was killed before its first.

    Raises:
        PrivacyError: a setting is not what it was.
    """
    run_dir = Path(config["run_dir"])
    kept = json.loads(str(state.get(KEPT, "{}"))) or read_promise(run_dir).get(TERMS, {})
    now = terms_of(level, config)
    for name, before in kept.items():
        after = now.get(name)
        if before == after:
            continue
        if name == "rounds":
            raise PrivacyError(
                f"{run_dir} has fitted its clients' noise to rounds={before}, got {after}: other rounds need "
                f"other noise (go on with rounds={before}, or start a new run; one with privacy.noise_multiplier "
                "set may be continued)"
            )
        raise PrivacyError(
            f"{run_dir} promised its privacy with {name}={_shown(before)}, config.yaml says {_shown(after)} (put it "
            "back, or start a new run)"
        )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
