"""What has been let out about whom: a file that is written before each release and cannot be edited unnoticed.

One line of JSON a release, each with the hash of the line before it. A line is on the disk before ``book`` returns,
and only then may the release leave: a crash can leave a line whose release never left, which counts too much, but no
release without a line.

The chain of hashes shows what was changed, cut out or put in another order. It cannot show that lines are missing at
the end: whoever keeps a checkpoint keeps ``head`` in it and calls ``require_head`` on resume. Nor is it a signature:
who rewrites the whole file can compute the hashes anew.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fedpeft.core.errors import BudgetError, ConfigError, PrivacyError
from fedpeft.privacy import accounting
from fedpeft.privacy.accounting import Accountant, Release
from fedpeft.privacy.entries import BEGINNING, Entry, append, open_locked, read_entries
from fedpeft.privacy.statement import show_epsilon

LEDGER = "ledger.jsonl"
"""Name of a ledger's file, in a run directory and in a client's state folder."""

POPULATION = "population"
"""The unit of releases that are about every client alike."""


def client_unit(client_id: int) -> str:
    """Return the unit of releases that are about one client's data."""
    return f"client {client_id}"


class Ledger:
    """The releases in one file.

    Opening checks every line. A ledger that is open for writing is locked, so that no other process can spend the same
    budget at the same time; close it or use it in a ``with`` statement.

    A last line that is incomplete was being written when the process died. Its release never left, because that waits
    for the whole line to be on the disk, so it is dropped. Where only the end of the line is missing it is kept and
    counted: an editor may have taken that away.

    Args:
        path: the file; made where there is none, with the folders above it.
        read_only: look at it without locking it; ``book`` is then refused.

    Attributes:
        path: the file.
        entries: its lines, in order.

    Raises:
        PrivacyError: the file was edited, cannot be read, or another process has it open for writing.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name) / "ledger.jsonl"
        >>> with Ledger(path) as ledger:
        ...     for server_round in (1, 2):
        ...         release = Release(noise_multiplier=1.0, sampling_rate=0.01, steps=500)
        ...         entry = ledger.book(release, unit="client 17", server_round=server_round, run_id="r", dataset="d")
        >>> f"{Ledger(path, read_only=True).epsilon('client 17', 1e-5):.2f}"
        '1.83'
        >>> folder.cleanup()
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._process = os.getpid()
        try:
            if not read_only:
                self._file = open_locked(self.path)
            self.entries, torn = read_entries(self.path)
            if self._file is not None:
                self._mend(torn)
        except OSError as error:
            self.close()
            raise PrivacyError(
                f"the privacy ledger {self.path} cannot be opened: {error.strerror or error} (restore it from a "
                "copy, or start a new run)"
            ) from error
        except PrivacyError:
            self.close()
            raise

    # -- writing ---------------------------------------------------------------------------------------

    def book(self, release: Release, *, unit: str, server_round: int, run_id: str, dataset: str) -> Entry:
        """Write a release down, and return only when it is on the disk; let it out after that, never before.

        Args:
            release: what is about to leave.
            unit: about whom: ``client_unit(client_id)`` or ``POPULATION``.
            server_round: the round it belongs to, from 1.
            run_id: the run it belongs to.
            dataset: names the data or the population that it is computed from.

        Raises:
            PrivacyError: it could not be written. It must then not leave.
        """
        file = self._writable()
        previous = self.entries[-1].hash if self.entries else BEGINNING
        entry = Entry.make(
            index=len(self.entries),
            unit=unit,
            server_round=server_round,
            run_id=run_id,
            dataset=dataset,
            release=release,
            previous=previous,
        )
        try:
            append(file, entry.line())
        except OSError as error:
            # How much of the line arrived is not known; opening the file again finds out.
            self.close()
            raise PrivacyError(
                f"round {server_round} of {unit} could not be booked in {self.path}, so it was not let out:"
                f" {error.strerror or error}"
            ) from error
        self.entries.append(entry)
        return entry

    def close(self) -> None:
        """Let others write; further booking is refused."""
        if self._file is None:
            return
        if self._process == os.getpid():
            # Forked children share the lock and may live longer than this process wants it.
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
        self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _writable(self) -> BinaryIO:
        if self._file is None:
            raise PrivacyError(f"the privacy ledger {self.path} is not open for writing")
        if self._process != os.getpid():
            raise PrivacyError(f"the privacy ledger {self.path} belongs to the process that opened it: open one here")
        return self._file

    def _mend(self, torn: bool) -> None:
        """End the file with a whole line: a last one without its end gets it, a torn one is cut off."""
        assert self._file is not None
        if not torn:
            return
        whole, size = sum(len(entry.line()) for entry in self.entries), self.path.stat().st_size
        if whole == size + 1:
            append(self._file, b"\n")
        else:
            os.ftruncate(self._file.fileno(), whole)
            os.fsync(self._file.fileno())

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def head(self) -> str:
        """The hash of the last line; put it into checkpoints for ``require_head``."""
        return self.entries[-1].hash if self.entries else BEGINNING

    def units(self) -> list[str]:
        """Return about whom something was released, in order of first appearance."""
        return list(dict.fromkeys(entry.unit for entry in self.entries))

    def releases(self, unit: str) -> list[Release]:
        """Return what was released about one unit, whatever run and data it came from.

        Data that changed by a few examples is still mostly the same data; so all releases count.
        """
        return [entry.release for entry in self.entries if entry.unit == unit]

    def epsilon(self, unit: str, delta: float, *, accountant: Accountant = "pld") -> float:
        """Return what has been spent on one unit, 0 where nothing was released."""
        return accounting.epsilon(self.releases(unit), delta, accountant=accountant)

    def verify(self) -> None:
        """Read the file again and check every line.

        Raises:
            PrivacyError: it was edited, or no longer holds what was booked here.
        """
        found, _ = read_entries(self.path)
        if found[: len(self.entries)] != self.entries:
            raise PrivacyError(
                f"{self.path} no longer holds the releases that it held when it was opened: restore it from a copy, or "
                "start a new run"
            )

    def require_rounds(self, rounds: Sequence[int], *, unit: str, run_id: str) -> None:
        """Refuse a ledger in which rounds are missing that the run has on record.

        Args:
            rounds: every round in which ``unit`` let something out.
            unit: about whom.
            run_id: in which run.

        Raises:
            PrivacyError: rounds are missing.
        """
        booked = {entry.server_round for entry in self.entries if entry.unit == unit and entry.run_id == run_id}
        missing = sorted(set(rounds) - booked)
        if missing:
            raise PrivacyError(
                f"{self.path} lacks round{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:10]))}"
                f"{' ...' * (len(missing) > 10)} of {unit}, which the run has on record: restore the ledger of this "
                "run, or start a new one"
            )

    def require_head(self, head: str) -> None:
        """Refuse a ledger that lacks the line whose hash a checkpoint kept; lines after it are welcome.

        Raises:
            PrivacyError: there is no such line.
        """
        if head != BEGINNING and all(entry.hash != head for entry in self.entries):
            raise PrivacyError(
                f"{self.path} lacks release {head[:12]}, which the checkpoint has: restore the ledger of this run, or "
                "start a new one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much may be spent on one unit.

    Attributes:
        epsilon: the most that all releases together may spend, above 0.
        delta: at this delta.
        accountant: by this accountant.

    Raises:
        ConfigError: a value is out of range.
    """

    epsilon: float
    delta: float
    accountant: Accountant = "pld"

    def __post_init__(self) -> None:
        problems = accounting.delta_problems(self.delta)
        if not 0 < self.epsilon < math.inf:
            problems.append(f"epsilon must be a finite number above 0, got {self.epsilon!r}")
        if problems:
            raise ConfigError(problems)

    def check(self, ledger: Ledger, unit: str, planned: Release) -> float:
        """Refuse a release that would pass the budget; call it before ``Ledger.book``.

        Args:
            ledger: what has been spent.
            unit: about whom the release is.
            planned: what is about to be let out.

        Returns:
            The epsilon that will have been spent on the unit after it.

        Raises:
            BudgetError: it would be more than the budget.
        """
        before = ledger.releases(unit)
        after = accounting.epsilon([*before, planned], self.delta, accountant=self.accountant)
        if after > self.epsilon:
            spent = accounting.epsilon(before, self.delta, accountant=self.accountant)
            raise BudgetError(
                f"budget spent: {unit} is at epsilon {show_epsilon(spent)} of {self.epsilon:g} (delta {self.delta:g}),"
                f" the next release would bring it to {show_epsilon(after)}; it was not let out ({ledger.path}): the"
                " model of the last round stands, and who wants more plans a larger privacy.epsilon from a run's first"
                " round on"
            )
        return after
