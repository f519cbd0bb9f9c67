"""What the pages tell a reader to type is typed here, in the order of the page, on a model and data that are small."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pages
import pytest
import toy as maker

from fedpeft import config as cfg
from fedpeft.cli.main import main

WITH_COMMANDS = [page for page in pages.PAGES if any(block.language == "sh" for block in pages.blocks(page))]


@pytest.fixture
def desk(toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the model and the data that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    model = next(one.split("=", 1)[1] for one in toy if one.startswith("model.path="))
    (tmp_path / "my_model").symlink_to(model)
    maker.write_data(tmp_path / "my_texts", rows=200)
    (tmp_path / "my_texts" / "validation.jsonl").write_text((tmp_path / "my_texts" / "train.jsonl").read_text())
    (tmp_path / "my_pairs").mkdir()
    rows = [
        {"question": f"w{i % 9} w1", "sentence": f"w{i % 7}", "label": i % 2, "topic": "abc"[i % 3]} for i in range(200)
    ]
    (tmp_path / "my_pairs" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield tmp_path
    sys.modules.pop("my_strategies", None)


@pytest.fixture
def type_in(toy: list[str], desk: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[pages.Command], int]:
    """Return a function that types a command, on the small model and data unless the command says otherwise."""

    def run(command: pages.Command) -> int:
        for folder in command.environment.get("PYTHONPATH", "").split(":"):
            monkeypatch.syspath_prepend(desk / folder) if folder else None
        said = command.overrides
        if command.words[0] == "python" and said is None:
            runpy.run_path(command.words[1], run_name="__main__")
            return 0
        if said is None:
            # Here it is not the figures that count.
            quick = ["--seconds", "2"] if command.words[1:3] == ["devices", "bench"] else []
            return main([*command.words[1:], *quick])
        if {"--help", "--cfg"} & set(said) or any(one.startswith("resume=") for one in said):
            return main(["simulate", *said])
        own_data = any(one.startswith("task.path=") for one in said)
        # An experiment sets values of the partition that it was written for.
        experiment = any(one.startswith("+experiment=") for one in said)
        method = any(one.startswith("method=") for one in said)
        own = ("task",) * own_data + ("partition",) * experiment + ("method.",) * method
        small = [one for one in toy if not (own and one.startswith(own))]
        place = [] if any(one.startswith("run_dir=") for one in said) else [f"run_dir=runs/{abs(hash(tuple(said)))}"]
        return main(["simulate", *small, *said, *place])

    return run


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_and_examples_of_the_page_run(
    page: str, desk: Path, type_in: Callable[[pages.Command], int], capsys: pytest.CaptureFixture[str]
) -> None:
    for block in pages.blocks(page):
        if block.file_name:
            (desk / block.file_name).parent.mkdir(parents=True, exist_ok=True)
            (desk / block.file_name).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), {"__name__": "__page__"})
        elif block.language == "sh":
            for command in pages.commands(block.text):
                if command.words[0] in pages.NOT_RUN or command.comment in pages.EXCUSES:
                    continue
                assert type_in(command) == 0, (page, command.words, capsys.readouterr().err)


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_are_right_as_a_reader_types_them(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defaults that a reader has, not those of the small runs, and the page's own modules at hand."""
    for block in pages.blocks(page):
        if block.file_name and block.file_name.endswith(".py"):
            (tmp_path / block.file_name).write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path)
    targets = {line.split(":")[0] for line in (pages.ROOT / "Makefile").read_text().splitlines() if "##" in line}
    for command in (
        one for block in pages.blocks(page) if block.language == "sh" for one in pages.commands(block.text)
    ):
        assert not command.comment.startswith("needs") or command.comment in pages.EXCUSES, command
        assert command.words[0] in {"fedpeft", "python", *pages.NOT_RUN}, command
        if command.words[0] == "make":
            assert set(command.words[1:]) <= targets, command
        said = " ".join(command.overrides or ["resume="])
        if not any(word in said for word in ("resume=", "--", "-m ", "hydra.searchpath=")):
            cfg.check(cfg.compose(command.overrides))


def test_what_the_readme_says_of_its_runs_is_so(
    desk: Path, type_in: Callable[[pages.Command], int], toy: list[str]
) -> None:
    """The README's strategy: round 1 is FedAvg's, round 2 is not, and a resumed run has its momentum.

    v1 = d1 and x1 = x0 + d1, the mean of the clients. v2 = 0.5 d1 + d2, so that x2 = x1 + d2 + 0.5 d1.
    """
    source = next(block for block in pages.blocks("README.md") if block.file_name == "my_strategies.py")
    assert len(source.text.splitlines()) <= 40
    (desk / "my_strategies.py").write_text(source.text)
    ours = ["strategy._target_=my_strategies.Momentum", "+strategy.momentum=0.5"]

    def run(name: str, *overrides: str) -> None:
        command = pages.Command(
            environment={"PYTHONPATH": "."}, words=["fedpeft", "simulate", *overrides, f"run_dir={name}"], comment=""
        )
        assert type_in(command) == 0

    for rounds in (1, 2):
        run(f"average{rounds}", f"rounds={rounds}")
        run(f"momentum{rounds}", *ours, f"rounds={rounds}")
    assert distance(desk, "momentum1", "average1") < 1e-7
    assert distance(desk, "momentum2", "average2") > 1e-4
    assert main(["simulate", f"resume={desk / 'momentum1'}", "rounds=2"]) == 0
    assert distance(desk, "momentum1", "momentum2") == 0


def distance(desk: Path, one: str, other: str) -> float:
    """Return the largest difference between two runs' adapters."""
    from safetensors.numpy import load_file

    a, b = (load_file(desk / name / "adapter" / "adapter_model.safetensors") for name in (one, other))
    assert a.keys() == b.keys()
    return max(float(abs(a[key] - b[key]).max()) for key in a)


@pytest.mark.parametrize("page", pages.PAGES)
def test_relative_links_and_images_resolve(page: str) -> None:
    here = (pages.ROOT / page).parent
    for link in pages.links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (here / path).resolve() if path else pages.ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in pages.anchors(target), f"{page}: {link}"


def test_tables_of_groups_strategies_and_methods_are_complete() -> None:
    """Every strategy and method begins a row of the README's tables, members of other groups are in docs/running.md."""
    running, readme = ((pages.ROOT / page).read_text() for page in ("docs/running.md", "README.md"))
    for folder in (path for path in (pages.ROOT / "conf").iterdir() if path.is_dir() and path.name != "device_profile"):
        row = next(line for line in running.splitlines() if line.startswith("|") and f"`{folder.name}`" in line)
        if folder.name in ("strategy", "method"):
            row = " ".join(line.split("|")[1] for line in readme.splitlines() if line.startswith("| `"))
        if folder.name == "experiment":
            row += (pages.ROOT / "docs/results.md").read_text()
        for member in folder.glob("*.yaml"):
            assert f"`{member.stem}`" in row or f"+experiment={member.stem}" in row, (folder.name, member.stem)


def test_the_readme_has_room_for_the_benchmark() -> None:
    text = (pages.ROOT / "README.md").read_text()
    assert 0 < text.index("<!-- benchmark:begin -->") < text.index("<!-- benchmark:end -->")


@pytest.mark.parametrize("page", pages.PAGES)
def test_values_that_the_page_names_exist(page: str) -> None:
    """A path in backquotes that begins with a key of the configuration is one, whatever member the group has."""
    config = cfg.compose(["model.path=x", "partition.seed=0"])
    named = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)[`=]", (pages.ROOT / page).read_text())
    files = (".html", ".json", ".jsonl", ".yaml", ".py")
    for path in (one for one in named if one.split(".")[0] in config and not one.endswith(files)):
        *parents, last = path.split(".")
        node = cfg.look_up(config, ".".join(parents))
        members = "".join(file.read_text() for file in (pages.ROOT / "conf" / parents[0]).glob("*.yaml"))
        assert last in node or last == "_target_" or re.search(rf"^{last}:", members, re.MULTILINE), f"{page}: {path}"
