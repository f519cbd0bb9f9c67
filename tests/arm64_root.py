"""An ARM64 Debian with what this project needs, run on this machine by qemu's user emulation.

Debian's packages are unpacked and not configured, and Python's are installed from here for the other processor: nothing
of the building is emulated, so that it takes half a minute. proot gives the emulated processes the root, their own
emulator whenever they start another one, and asks for no privilege.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TOOLS = {"mmdebstrap": "mmdebstrap", "proot": "proot", "qemu-aarch64-static": "qemu-user-static"}
"""Programs, and the Debian packages that they are in."""
RELEASE, PYTHON, PLATFORM = "bookworm", "3.11", "aarch64-manylinux_2_28"
PACKAGES = ("python3", "libstdc++6", "libgomp1")
NO_WHEEL = ("antlr4-python3-runtime",)
"""What hydra-core needs and the index has as a source only; it is plain Python."""
_SITE, _BYTECODE = "/opt/site", "/opt/bytecode"
_UNSATISFIABLE = 1


class Missing(Exception):
    """This machine lacks something that the root is made with; says what, and how to get it."""


@dataclass(frozen=True, kw_only=True)
class Arm64Root:
    """A folder that emulated processes see as their root.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def site(self) -> Path:
        """Where Python's packages are."""
        return self.path / _SITE[1:]

    def command(self, *words: str, folders: Sequence[Path] = (), more: Mapping[str, str]) -> list[str]:
        """Return the command that runs the root's Python with these words, and with this repository's modules.

        Args:
            words: what follows ``python3``.
            folders: of this machine, which it sees under the same names.
            more: variables of its environment, which has nothing of this machine's but these.
        """
        seen = [*map(Path, ("/proc", "/sys", "/dev", "/etc/passwd")), REPOSITORY, *folders]
        variables = {
            "PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONPATH": f"{REPOSITORY}:{_SITE}",
            "PYTHONPYCACHEPREFIX": _BYTECODE, **more,
        }  # fmt: skip
        proot, qemu = (str(shutil.which(name)) for name in ("proot", "qemu-aarch64-static"))
        return [
            "env", "-i", *(f"{name}={value}" for name, value in variables.items()),
            proot, "-q", qemu, "-r", str(self.path), "-w", "/tmp",
            *(word for folder in seen for word in ("-b", str(folder))), "/usr/bin/python3", *words,
        ]  # fmt: skip


def made(cache: Path) -> Arm64Root:
    """Return the root of this version's dependencies; made where it is not in the cache yet.

    Args:
        cache: folder of such roots.

    Raises:
        Missing: a program, the right to make a root, Debian's archive or the package index is.
    """
    lacking = {program: package for program, package in TOOLS.items() if shutil.which(program) is None}
    if lacking:
        raise Missing(f"no {', '.join(lacking)} here (apt-get install {' '.join(lacking.values())})")
    path = cache / f"{RELEASE}-{version()}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            _unpack_debian(unfinished)
            install(unfinished)
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return Arm64Root(path=path)


def version() -> str:
    """Return what stands for the dependencies' versions in a root's name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    parts = [*project["dependencies"], (REPOSITORY / "constraints.txt").read_text(), PLATFORM, PYTHON, *PACKAGES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _unpack_debian(root: Path) -> None:
    options = ["--quiet", "--architectures=arm64", "--variant=extract", f"--include={','.join(PACKAGES)}"]
    done = _run(["mmdebstrap", *options, RELEASE, str(root)])
    if done.returncode:
        raise Missing(
            f"mmdebstrap cannot unpack an ARM64 {RELEASE}, which takes root or user namespaces, and Debian's archive: "
            + done.stderr.strip().replace("\n", "; ")
        )


def install(root: Path) -> None:
    """Install the project's dependencies for ARM64; that they cannot be resolved is a fault, no lack of this machine.

    Args:
        root: the folder that they go below.

    Raises:
        Missing: the package index cannot be reached.
    """
    options = ["--target", str(Arm64Root(path=root).site), "--python-platform", PLATFORM, "--python-version", PYTHON]
    options += ["--only-binary", ":all:", *(word for name in NO_WHEEL for word in ("--no-binary", name))]
    options += ["-c", str(REPOSITORY / "constraints.txt"), "-r", str(REPOSITORY / "pyproject.toml")]
    done = _run([sys.executable, "-m", "uv", "pip", "install", "--quiet", *options])
    if done.returncode:
        assert done.returncode != _UNSATISFIABLE, f"the dependencies cannot be had for ARM64:\n{done.stderr}"
        raise Missing(f"the package index cannot be reached: {done.stderr.strip()[-500:]}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=1800)
