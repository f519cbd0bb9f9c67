"""What the code imports is what pyproject.toml asks for, and what it asks for has a pinned version."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = "dev"
"""The extra that no import of the package may rest on."""


def plain(name: str) -> str:
    """Return a distribution's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    """Return the distributions that these lines begin with."""
    found = (re.match(r"[A-Za-z0-9._-]+", line.strip()) for line in requirements)
    return {plain(one[0]) for one in found if one}


def declared() -> set[str]:
    """Return what a user's installation asks for, with every extra but the tools."""
    extras = (lines for extra, lines in PROJECT["optional-dependencies"].items() if extra != TOOLS)
    return names([*PROJECT["dependencies"], *(line for lines in extras for line in lines)])


def imported(path: Path) -> set[str]:
    """Return the first names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def test_every_import_is_declared() -> None:
    """What another dependency happens to bring may be gone with its next version."""
    homes, known = packages_distributions(), declared()
    outside = {
        name: path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "fedpeft").rglob("*.py"))
        for name in imported(path) - set(sys.stdlib_module_names) - {"fedpeft"}
    }
    assert {"torch", "yaml", "flwr_datasets"} <= outside.keys()
    assert {name: path for name, path in outside.items() if not known & set(map(plain, homes.get(name, [name])))} == {}


def test_every_dependency_has_a_pinned_version() -> None:
    pinned = names([line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line])
    assert len(declared()) > 20
    assert declared() - pinned == set()
