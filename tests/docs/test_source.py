"""What every file must be: documented, of readable size, light to import, and tied to no machine."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "fedpeft").rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60
HEAVY = {
    "torch",
    "flwr",
    "datasets",
    "flwr_datasets",
    "transformers",
    "peft",
    "opacus",
    "matplotlib",
    "pandas",
    "pyarrow",
    "ray",
    "jinja2",
}

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.AST, prefix: str = "") -> list[tuple[str, Definition]]:
    """Return what a reader of the API meets: public classes, functions and methods, not what is inside functions."""
    found: list[tuple[str, Definition]] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition) and not node.name.startswith("_"):
            found.append((prefix + node.name, node))
            if isinstance(node, ast.ClassDef):
                found += public(node, f"{prefix}{node.name}.")
    return found


def contract(tree: ast.Module) -> set[str]:
    """Return the names of protocol classes: their own docstring says what their one-line methods do."""
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
    }


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree), f"{module} says nothing about itself"
    protocols = contract(tree)
    silent = [
        name for name, node in public(tree) if not ast.get_docstring(node) and name.split(".")[0] not in protocols
    ]
    assert not silent, f"{module}: no docstring on {', '.join(silent)}"
    assert not [name for name, node in public(tree) if name in protocols and not ast.get_docstring(node)]


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module: str) -> None:
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= MOST_LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno}
    assert not {name: size for name, size in sizes.items() if size > MOST_LINES_OF_A_FUNCTION}


@pytest.mark.parametrize("module", [module for module, path in MODULES.items() if ">>> " in path.read_text()])
def test_examples_in_docstrings_run(module: str) -> None:
    found = importlib.import_module(module)
    result = doctest.testmod(found, extraglobs=vars(found).copy(), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0 or "+SKIP" in MODULES[module].read_text()
    assert result.failed == 0


def test_all_is_what_loads() -> None:
    import fedpeft

    assert dir(fedpeft) == sorted(fedpeft.__all__)
    assert all(getattr(fedpeft, name) is not None for name in fedpeft.__all__)
    assert [getattr(fedpeft, name).__name__ for name in ("ClientInfo", "ClientUpdate", "FedPeft")] == [
        "ClientInfo",
        "ClientUpdate",
        "FedPeft",
    ]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedpeft.nothing


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["--version"],
        ["simulate", "--help"],
        ["report", "--help"],
        ["devices", "--help"],
        ["data", "--help"],
    ],
    ids=" ".join,
)
def test_help_is_fast_and_imports_nothing_heavy(command: list[str]) -> None:
    """CPU time, so that a busy machine does not count; the better of two, because a first start may compile."""
    code = f"""
import contextlib, sys
from fedpeft.cli.main import main
with contextlib.suppress(SystemExit):
    main({command!r})
print("loaded", *sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)
"""
    seconds = []
    for _ in range(2):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert done.stderr.split() == ["loaded"]
        assert done.stdout.strip()
    assert min(seconds) < 1.0


def test_public_names_and_strategies_need_no_torch() -> None:
    code = "import sys, fedpeft, fedpeft.strategies.fedavg, fedpeft.selection.uniform; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert not {"torch", "transformers", "peft"} & set(loaded)


def test_no_file_names_a_machine() -> None:
    """Paths of a home, a workplace or a temporary folder mean nothing to a reader; pages and configs are ASCII."""
    machine = re.compile(
        "|".join(
            (
                r"(?<![\w.])/" + r"work/",
                r"(?<![\w.])/" + r"root/",
                "/" + r"home/\w",
                "/" + r"Users/\w",
                "/tmp/" + r"\w/",
            )
        )
    )
    suffixes = {".py", ".md", ".yaml", ".toml", ".txt", ".cfg", ".j2", ""}
    folders = [ROOT / name for name in ("fedpeft", "conf", "tests", "docs", "simulations", "benchmarks", ".ci")]
    files = [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in files
        if path.is_file() and path.suffix in suffixes and not path.name.startswith(".coverage")
    }
    assert len(texts) > 100
    assert not {
        name: found[0] for name, text in texts.items() if (found := machine.findall(text.decode(errors="replace")))
    }
    assert not [name for name, text in texts.items() if name.endswith((".md", ".yaml")) and not text.isascii()]
