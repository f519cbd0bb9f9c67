"""A ledger forgets nothing that left, shows every edit, and stops a run before its budget is passed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.privacy.accounting import Release, epsilon
from fedpeft.privacy.calibrate import noise_multiplier_for
from fedpeft.privacy.ledger import LEDGER, POPULATION, Budget, Ledger, client_unit

RELEASE = Release(noise_multiplier=1.0, sampling_rate=0.1, steps=3)


def book(ledger: Ledger, server_round: int = 1, release: Release = RELEASE, unit: str = POPULATION) -> None:
    ledger.book(release, unit=unit, server_round=server_round, run_id="run", dataset="twenty clients")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of three rounds."""
    file = tmp_path / "run" / LEDGER
    with Ledger(file) as ledger:
        for server_round in (1, 2, 3):
            book(ledger, server_round)
    return file


def rounds(path: Path) -> list[int]:
    return [entry.server_round for entry in Ledger(path, read_only=True).entries]


# -- what it holds --------------------------------------------------------------------------------------


def test_what_was_booked_is_there_when_it_is_opened_again(path: Path) -> None:
    with Ledger(path) as ledger:
        assert [entry.index for entry in ledger.entries] == [0, 1, 2]
        assert ledger.releases(POPULATION) == [RELEASE] * 3
        book(ledger, 7, Release(noise_multiplier=0.1 + 0.2, kind="full"), client_unit(17))
        ledger.verify()
    again = Ledger(path, read_only=True)
    assert again.units() == ["population", "client 17"]
    assert again.releases("client 17") == [Release(noise_multiplier=0.30000000000000004, kind="full")]
    assert again.releases("client 18") == []
    assert again.epsilon("client 18", 1e-5) == 0
    assert again.entries[3].dataset == "twenty clients"


def test_a_line_is_json_that_others_can_read_and_check(path: Path) -> None:
    """hash = sha256 of the line without it, with sorted keys and no spaces; previous = the hash of the line before."""
    import hashlib

    previous = "0" * 64
    for line in path.read_text().splitlines():
        data = json.loads(line)
        stated = data.pop("hash")
        assert set(data) == {
            *("index", "unit", "round", "run_id", "dataset", "previous"),
            *("noise_multiplier", "sampling_rate", "steps", "kind"),
        }
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(canonical.encode()).hexdigest() == stated
        assert data["previous"] == previous
        previous = stated
    assert Ledger(path, read_only=True).head == previous


def test_epsilon_composes_whatever_was_released_about_the_unit(path: Path) -> None:
    ledger = Ledger(path, read_only=True)
    nine = Release(noise_multiplier=1.0, sampling_rate=0.1, steps=9)
    for accountant in ("pld", "rdp"):
        assert ledger.epsilon(POPULATION, 1e-5, accountant=accountant) == epsilon([nine], 1e-5, accountant=accountant)


# -- edits ----------------------------------------------------------------------------------------------


def test_any_changed_character_is_seen(path: Path) -> None:
    """Each place in turn gets another character; the end of the last line is a matter of its own, below."""
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        path.write_bytes(whole[:place] + (b"7" if whole[place : place + 1] != b"7" else b"8") + whole[place + 1 :])
        with pytest.raises(PrivacyError, match=r"line [123] of .*ledger\.jsonl"):
            Ledger(path)


Edit = Callable[[list[str]], list[str]]
EDITS: dict[str, tuple[Edit, str]] = {
    "first line cut out": (lambda a: a[1:], "line 1 of .* has number 1 where 0 belongs: lines are missing or moved"),
    "middle line cut out": (lambda a: [a[0], a[2]], "line 2 of .* has number 2 where 1 belongs"),
    "two lines swapped": (lambda a: [a[0], a[2], a[1]], "line 2 of .* has number 2 where 1 belongs"),
    "a line twice": (lambda a: [a[0], a[0], a[1]], "line 2 of .* has number 0 where 1 belongs"),
    "an empty line": (lambda a: [a[0], "", a[1]], "line 2 of .* is no release: the ledger was edited or damaged"),
    "half a line": (lambda a: [a[0], a[1][:50], a[2]], "line 2 of .* is no release"),
    "fewer steps": (
        lambda a: [a[0], a[1].replace('"steps":3', '"steps":1'), a[2]],
        "line 2 of .* was edited: its content does not have its hash",
    ),
    "more noise": (
        lambda a: [a[0].replace('"noise_multiplier":1.0', '"noise_multiplier":9.0'), *a[1:]],
        "line 1 of .* was edited",
    ),
    "an added value": (lambda a: [a[0].replace("{", '{"a":1,', 1), *a[1:]], "line 1 of .* was edited"),
    "an added space": (lambda a: [a[0].replace(",", ", ", 1), *a[1:]], "line 1 of .* was edited"),
    "steps that cannot be": (lambda a: [a[0].replace('"steps":3', '"steps":-3'), *a[1:]], "line 1 of .* is no release"),
    "a list": (lambda a: ["[]", *a[1:]], "line 1 of .* is no release"),
    "not text": (lambda a: ["\0\0", *a[1:]], "line 1 of .* is no release"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_ledger_is_refused_with_line_and_reason(name: str, path: Path) -> None:
    edit, said = EDITS[name]
    path.write_text("".join(line + "\n" for line in edit(path.read_text().splitlines())))
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(PrivacyError, match=said):
            Ledger(path, read_only=read_only)
    assert path.read_bytes() == before, "a refused ledger stays as it is"


def test_a_line_rehashed_alone_breaks_the_chain(path: Path) -> None:
    from fedpeft.privacy.entries import Entry

    first, second, third = Ledger(path, read_only=True).entries
    forged = Entry.make(
        index=1,
        unit=second.unit,
        server_round=2,
        run_id=second.run_id,
        dataset=second.dataset,
        release=Release(noise_multiplier=50.0),
        previous=first.hash,
    )
    path.write_bytes(first.line() + forged.line() + third.line())
    with pytest.raises(PrivacyError, match=r"line 3 of .* does not follow the line before it"):
        Ledger(path)


def test_lines_that_vanish_while_it_is_open_are_seen(path: Path) -> None:
    with Ledger(path) as ledger:
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
        with pytest.raises(PrivacyError, match="no longer holds the releases"):
            ledger.verify()


def test_a_checkpoint_knows_what_the_ledger_must_hold(path: Path) -> None:
    ledger = Ledger(path, read_only=True)
    head = ledger.head
    ledger.require_rounds([1, 2, 3], unit=POPULATION, run_id="run")
    ledger.require_head(head)
    ledger.require_head("0" * 64)
    with pytest.raises(PrivacyError, match="lacks rounds 4, 5 of population, which the run has on record"):
        ledger.require_rounds(range(1, 6), unit=POPULATION, run_id="run")
    for other in ({"unit": "client 1", "run_id": "run"}, {"unit": POPULATION, "run_id": "another"}):
        with pytest.raises(PrivacyError, match="lacks round 1 of"):
            ledger.require_rounds([1], **other)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    cut = Ledger(path, read_only=True)
    with pytest.raises(PrivacyError, match=f"lacks release {head[:12]}, which the checkpoint has"):
        cut.require_head(head)


# -- crashes --------------------------------------------------------------------------------------------


def test_a_line_torn_anywhere_is_dropped_and_the_file_goes_on(path: Path) -> None:
    """Its release waited for the whole line to be on the disk, so it never left. The two lines before it stay."""
    whole = path.read_bytes()
    two = whole.rindex(b"\n", 0, -1) + 1
    for size in range(two, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert rounds(path) == [1, 2]
        if size % 40 == 0:
            with Ledger(path) as ledger:
                book(ledger, 3)
            assert path.read_bytes() == whole


def test_an_edited_last_line_is_no_torn_one(path: Path) -> None:
    """Whole JSON without its end: an editor's doing, which drops nothing."""
    *kept, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept) + last.strip().replace(b'"steps":3', b'"steps":1'))
    for read_only in (True, False):
        with pytest.raises(PrivacyError, match=r"the last line of .*ledger\.jsonl was edited"):
            Ledger(path, read_only=read_only)


def test_a_last_line_that_lacks_only_its_end_counts(path: Path) -> None:
    """An editor may have taken the end of the file away from a release that did leave."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert rounds(path) == [1, 2, 3]
    with Ledger(path):
        assert path.read_bytes() == whole


def test_the_line_is_on_the_disk_before_book_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    fsync = os.fsync
    path = tmp_path / LEDGER

    def watch(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(path.read_bytes())

    monkeypatch.setattr(os, "fsync", watch)
    with Ledger(path) as ledger:
        for count in (1, 2):
            book(ledger)
            assert synced[-1] == path.read_bytes()
            assert synced[-1].count(b"\n") == count


def test_what_could_not_be_written_is_refused_and_so_is_all_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Ledger(path) as ledger:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            PrivacyError, match=r"round 4 of population could not be booked .* was not let out: No space"
        ):
            book(ledger, 4)
        monkeypatch.undo()
        with pytest.raises(PrivacyError, match="is not open for writing"):
            book(ledger, 5)
    assert rounds(path)[:3] == [1, 2, 3]


WRITER = """
import sys
from fedpeft.privacy.accounting import Release
from fedpeft.privacy.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    for server_round in range(1, 10**6):
        entry = ledger.book(
            Release(noise_multiplier=1.0), unit="population", server_round=server_round, run_id="r", dataset="d"
        )
        print(entry.index, flush=True)
"""


def test_a_killed_process_has_booked_all_that_it_let_out(tmp_path: Path) -> None:
    path = tmp_path / LEDGER
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    left = [int(writer.stdout.readline()) for _ in range(25)]
    with pytest.raises(PrivacyError, match="is in use by another process"):
        Ledger(path)
    assert len(rounds(path)) >= 25, "a reader needs no lock"
    writer.kill()
    left += [int(line) for line in writer.stdout]
    writer.wait()
    writer.stdout.close()
    with Ledger(path) as ledger:
        assert len(ledger.entries) in (len(left), len(left) + 1)
        book(ledger, len(ledger.entries) + 1)


# -- one writer -----------------------------------------------------------------------------------------


def test_a_second_writer_waits_until_the_first_has_closed(path: Path) -> None:
    with Ledger(path), pytest.raises(PrivacyError, match="in use by another process"):
        Ledger(path)
    Ledger(path).close()


def test_a_forked_child_neither_books_nor_gives_the_lock_away(path: Path) -> None:
    with Ledger(path) as ledger:
        child = os.fork()
        if child == 0:
            try:
                book(ledger, 4)
                os._exit(1)
            except PrivacyError as error:
                ledger.close()
                os._exit(0 if "belongs to the process that opened it" in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(PrivacyError, match="in use by another process"):
            Ledger(path)
        book(ledger, 4)
    assert rounds(path) == [1, 2, 3, 4]


def test_a_reader_books_nothing_and_makes_nothing(path: Path, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="is not open for writing"):
        book(Ledger(path, read_only=True))
    with pytest.raises(PrivacyError, match="cannot be opened: No such file"):
        Ledger(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(PrivacyError, match="cannot be opened: Is a directory"):
        Ledger(tmp_path)


# -- budget ---------------------------------------------------------------------------------------------


def test_a_calibrated_run_does_all_its_rounds_and_not_one_more(tmp_path: Path) -> None:
    noise = noise_multiplier_for(3.0, 1e-4, sampling_rate=0.2, steps=6)
    release = Release(noise_multiplier=noise, sampling_rate=0.2)
    budget = Budget(epsilon=3.0, delta=1e-4)
    spent = []
    for server_round in range(1, 7):
        with Ledger(tmp_path / LEDGER) as ledger:
            spent.append(budget.check(ledger, POPULATION, release))
            book(ledger, server_round, release)
            assert ledger.epsilon(POPULATION, 1e-4) == spent[-1]
    assert spent == sorted(spent)
    assert 2.99 < spent[-1] <= 3.0
    with Ledger(tmp_path / LEDGER) as ledger:
        before = ledger.path.read_bytes()
        with pytest.raises(
            PrivacyError, match=r"budget spent: population is at epsilon (2\.99\d|3\.000) of 3 .*3\.\d+;"
        ):
            budget.check(ledger, POPULATION, release)
        assert budget.check(ledger, "client 3", release) == spent[0]
        assert ledger.path.read_bytes() == before


def test_a_budget_may_be_spent_to_its_last_bit_and_no_further(path: Path) -> None:
    ledger, after = Ledger(path, read_only=True), epsilon([RELEASE] * 4, 1e-5)
    assert Budget(epsilon=after, delta=1e-5).check(ledger, POPULATION, RELEASE) == after
    with pytest.raises(PrivacyError, match="budget spent"):
        Budget(epsilon=math.nextafter(after, 0), delta=1e-5).check(ledger, POPULATION, RELEASE)


def test_the_budget_is_kept_by_the_accountant_that_it_names(path: Path) -> None:
    ledger = Ledger(path, read_only=True)
    after = {by: epsilon([RELEASE] * 4, 1e-5, accountant=by) for by in ("pld", "rdp")}
    between = (after["pld"] + after["rdp"]) / 2
    assert Budget(epsilon=between, delta=1e-5).check(ledger, POPULATION, RELEASE) == after["pld"]
    with pytest.raises(PrivacyError, match="budget spent"):
        Budget(epsilon=between, delta=1e-5, accountant="rdp").check(ledger, POPULATION, RELEASE)


def test_no_budget_has_room_for_a_release_without_noise(path: Path) -> None:
    with pytest.raises(PrivacyError, match=r"would bring it to infinite \(no privacy\)"):
        Budget(epsilon=1e9, delta=0.5).check(Ledger(path, read_only=True), POPULATION, Release(noise_multiplier=0.0))


@pytest.mark.parametrize("values", [{"epsilon": 0.0}, {"epsilon": -1.0}, {"epsilon": float("nan")}, {"delta": 0.0}])
def test_a_budget_must_be_one(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Budget(**{"epsilon": 1.0, "delta": 1e-5, **values})
