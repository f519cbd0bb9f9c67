"""Errors that fedpeft raises on purpose.

    FedPeftError
    +-- ConfigError        the configuration is wrong; carries every problem found, one line each
    +-- DataError          a source, a download or a table is missing, corrupt or unusable
    +-- WireError          a message broke the contract; carries the check that failed
    +-- EngineError        a worker pool or a Flower runtime failed
    +-- CheckpointError    a checkpoint cannot be written or read
    +-- ReportError        a run directory cannot be read
    +-- PrivacyError       a privacy promise cannot be kept: a ledger was edited, a self-test failed
        +-- BudgetError    one more release would pass a privacy budget

A message says what was wrong, what was got and what to do, in one line. The command line prints it without a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

OUT_OF_MEMORY = "out of memory"
"""Words by which a device says, in the reason of an error reply, that the work was too large for it."""


def is_out_of_memory(reason: str) -> bool:
    """Return whether an error's reason says that memory was lacking."""
    return OUT_OF_MEMORY in reason


class FedPeftError(Exception):
    """Base of every error that fedpeft raises on purpose.

    Attributes:
        exit_code: what the command line exits with, 1 unless a subclass says otherwise.
    """

    exit_code = 1


class ConfigError(FedPeftError):
    """The configuration cannot be run.

    Args:
        problems: one line for each problem; all of them are shown together.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(FedPeftError):
    """A data or model source is missing, corrupt or unusable."""


class WireError(FedPeftError):
    """A message from the other end broke the contract.

    Args:
        check: short name of the failed check, e.g. ``shape``; counted in reports.
        reason: what was wrong and what was got.
    """

    def __init__(self, check: str, reason: str) -> None:
        self.check = check
        self.reason = reason
        super().__init__(f"{check}: {reason}")


class EngineError(FedPeftError):
    """An engine could not run the work it was given."""


class CheckpointError(FedPeftError):
    """A checkpoint cannot be written or read."""


class ReportError(FedPeftError):
    """A run directory cannot be read."""


class PrivacyError(FedPeftError):
    """A privacy promise cannot be kept: a ledger was edited, a check of the mechanism failed."""


class BudgetError(PrivacyError):
    """One more release would pass a privacy budget; it was not let out."""


def printable(reason: str, most: int = 300) -> str:
    """Return text from the other end as it may be shown: cut, and without characters that move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in reason[:most]) + ("..." if len(reason) > most else "")
