"""How a ServerApp ends: of itself with a reason, or with its SuperLink and to be started again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError

from fedpeft.core.errors import EngineError
from fedpeft.engines.deploy import serving
from fedpeft.engines.deploy.event_file import NAME, Follower, ServerFailedError
from fedpeft.engines.flower_private import is_link_error

LINK_ERRORS = [ObjectPushError("a" * 64, 1, "s"), ObjectPullError("b" * 64, "gone"), httpx.ConnectError("refused")]
OWN_ERRORS = [EngineError("no model"), ValueError("a bug"), KeyboardInterrupt(), OSError("disk full")]


def failing(error: BaseException) -> Callable[..., None]:
    def serve(*_: object) -> None:
        raise error

    return serve


def events_after(error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setattr(serving, "_serve", failing(error))
    (folder / "nodes.json").write_text("{}")
    with pytest.raises(type(error)):
        serving.serve_run(None, f'{{"run_dir": "{folder}"}}', {"nodes": str(folder / "nodes.json")})  # type: ignore[arg-type]
    return list(Follower(folder / NAME).new())


@pytest.mark.parametrize("error", LINK_ERRORS, ids=lambda error: type(error).__name__)
def test_a_lost_superlink_is_no_failure_of_the_run(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert events_after(error, tmp_path, monkeypatch) == []


@pytest.mark.parametrize("error", OWN_ERRORS, ids=lambda error: type(error).__name__)
def test_any_other_error_is_told(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [told] = events_after(error, tmp_path, monkeypatch)
    assert isinstance(told, ServerFailedError)
    assert str(error) in str(told)


def test_a_link_error_is_found_behind_the_error_that_it_caused() -> None:
    wrapped = EngineError("the round failed")
    wrapped.__cause__ = LINK_ERRORS[0]
    assert is_link_error(wrapped)
    assert not is_link_error(EngineError("the round failed"))
