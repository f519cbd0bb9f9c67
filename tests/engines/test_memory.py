"""The heap before a fork: out of the collector's sight, but not for ever."""

from __future__ import annotations

import gc
import weakref

from fedpeft.engines.memory import freeze_heap


class Loop:
    """An object that only the collector can free: it refers to itself, as models with hooks do."""

    def __init__(self) -> None:
        self.itself = self


def test_what_an_earlier_run_froze_is_collected_by_the_next() -> None:
    model = Loop()
    there = weakref.ref(model)
    try:
        freeze_heap()
        assert gc.get_freeze_count() > 0
        del model
        gc.collect()
        assert there() is not None, "frozen, the collector does not see it"
        freeze_heap()
        assert there() is None
    finally:
        gc.unfreeze()
