"""Every YAML composes, builds what it names, and says what each value does."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import refusals

import fedpeft
from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError
from fedpeft.core.paths import conf_dir
from fedpeft.device_profiles.presets import load_profile

CONF = conf_dir()
FILES = sorted(CONF.rglob("*.yaml"))
MEMBERS = sorted(
    (parts[0], "/".join(parts[1:]))
    for parts in (path.relative_to(CONF).with_suffix("").parts for path in FILES)
    if len(parts) > 1
)
"""Group and member; a study's members lie in a folder of their own, e.g. ``slora/lora``."""
OUTSIDE = ("device_profile", "experiment")
"""Groups that are not in the defaults list: presets are read by name, experiments are added."""
NEEDS = {
    ("model", "hub"): ["model.path=some/model"],
    ("task", "text_classification"): ["task.path=some/folder"],
    ("task", "causal_lm"): ["task.path=some/folder"],
    ("strategy", "scaffold"): ["client.optimizer=sgd"],
    ("strategy", "fedpeptao"): ["method=prefix"],
    ("strategy", "slora"): ["method=slora"],
    ("strategy", "fed_sb"): ["method=lora_sb"],
}
PATHS = [
    "strategy",
    "method",
    "model",
    "task",
    "partition",
    "fleet",
    "selection",
    "codec",
    "privacy",
    "engine",
    "rounds",
    "cohort_size",
    "num_clients",
    "seed",
    "run_dir",
    "resume",
    "round.deadline_s",
    "client.local_steps",
    "client.batch_size",
    "client.lr",
    "method.rank",
    "task.path",
    "engine.workers",
]
"""What other people rely on."""


def name(path: Path) -> str:
    return str(path.relative_to(CONF))


def choose(group: str, member: str) -> list[str]:
    plus = "+" if group == "experiment" else ""
    return [f"{plus}{group}={member}", *NEEDS.get((group, member), [])]


@pytest.mark.parametrize(("group", "member"), [m for m in MEMBERS if m[0] != "device_profile"])
def test_every_member_of_every_group_composes_checks_and_builds(group: str, member: str) -> None:
    if (group, member) == ("engine", "ray") and importlib.util.find_spec("ray") is None:
        pytest.skip("the ray extra is not installed")
    config = cfg.compose(choose(group, member))
    cfg.check(config)
    node = config.get(group)
    if isinstance(node, dict) and "_target_" in node:
        assert cfg.build(node) is not None
    if group != "experiment":
        assert node == {**node, **_plain_values(CONF / group / f"{member}.yaml")}


def _plain_values(path: Path) -> dict[str, Any]:
    """Return the file's own values that neither interpolate nor miss."""
    return {
        key: value
        for key, value in yaml.safe_load(path.read_text()).items()
        if key != "defaults" and "${" not in str(value) and value != "???"
    }


@pytest.mark.parametrize("profile", [member for group, member in MEMBERS if group == "device_profile"])
def test_every_device_profile_is_checked_under_its_own_name(profile: str) -> None:
    assert load_profile(profile).name == profile


def test_the_config_as_it_is_runs() -> None:
    config = cfg.compose([])
    assert refusals(config) == []
    assert len(refusals({**config, "rounds": 0})) == 1


def test_every_group_is_chosen_somewhere() -> None:
    defaults = {
        key
        for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
        if isinstance(entry, dict)
        for key in entry
        if not key.startswith("override")
    }
    assert {group for group, _ in MEMBERS} == defaults | set(OUTSIDE)


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_others_rely_on_exist(path: str) -> None:
    *parents, last = path.split(".")
    node: Any = cfg.compose([])
    for step in parents:
        node = node[step]
    assert last in node


@pytest.mark.parametrize("part", ["strategies", "methods", "selection", "engines"])
def test_every_class_that_a_config_could_name_has_a_yaml(part: str) -> None:
    """A strategy, method, selection or engine without a YAML cannot be chosen."""
    group = {"strategies": "strategy", "methods": "method", "selection": "selection", "engines": "engine"}[part]
    targets = {yaml.safe_load(path.read_text()).get("_target_") for path in (CONF / group).glob("*.yaml")}
    # An engine in a package of its own has its helpers there.
    direct = {str(target) for target in targets if str(target).count(".") == 3}
    modules = {target.rpartition(".")[0].rpartition(".")[2] for target in direct}
    helpers = {
        "strategies": {
            *("base", "merging", "server_optimizer", "product_error", "metrics", "roster", "telling", "view"),
            *("buffer", "cohort", "instruct", "memory", "private", "surroundings"),
        },
        "methods": {"base", "heads", "inject", "placement", "saving", "targets", "virtual"},
        "selection": {"base", "crowd", "history"},
        "engines": {
            "flower_private",
            "flower_private_device",
            "flower_private_node",
            "flower_private_server",
            "grid",
            "memory",
            "pool",
            "session",
        },
    }[part]
    files = {path.stem for path in (Path(fedpeft.__file__).parent / part).glob("*.py")} - {"__init__"}
    assert files - helpers == modules


def commentless(path: Path) -> Iterator[str]:
    """Yield key lines without a word: on the line, on the line above, or on the line of the block they stand in.

    Exempt are ``_target_``, keys that only open a block, entries of the defaults list and Hydra's own block.
    """
    explained: list[tuple[int, bool]] = []
    above = False
    for line in path.read_text().splitlines():
        match = re.match(r"(\s*)(- )?([\w.\"$-]+):(\s|$)(.*)", line)
        if match is None:
            above = line.lstrip().startswith("#")
            continue
        indent, key, rest = len(match[1]), match[3], match[5]
        explained = [(i, e) for i, e in explained if i < indent]
        has_comment = above or "#" in rest
        inherited = any(e for _, e in explained)
        opens = rest.split("#")[0].strip() == ""
        explained.append((indent, (has_comment or key == "hydra" or inherited) and opens))
        above = False
        if not (has_comment or inherited or opens or key == "_target_" or match[2] or rest.startswith("{")):
            yield line.strip()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_value_has_a_comment_of_its_effect(path: Path) -> None:
    assert path.read_text().startswith("#"), "the first line says what the file is"
    assert list(commentless(path)) == []


def test_the_comment_check_sees_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "# x\na: 1  # said\nb: 2\n# said\nc: 3\nd:\n  e: 4\nf:  # said\n  g: 5\nh: 6\nhydra:\n  i: {x: 1}\n  j: 7\n"
    )
    assert list(commentless(file)) == ["b: 2", "e: 4", "h: 6"]


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        cfg.check(cfg.compose(overrides))
    return caught.value.problems


def test_all_problems_are_told_at_once() -> None:
    told = problems(
        "rounds=0",
        "client.lr=-1",
        "head=shared",
        "method.rank=0",
        "fleet.weights.phone_low=-5",
        "cohort_size=21",
        "guard.max_norm=nan",
    )
    for start in (
        "rounds must be",
        "client.lr must be",
        "head must be one of",
        "rank must be in 1..1024, got 0",
        "cohort_size must be at most num_clients (20)",
    ):
        assert len([line for line in told if line.startswith(start)]) == 1, told
    assert any("phone_low" in line for line in told)
    assert any("guard.max_norm" in line for line in told)
    assert all("\n" not in line for line in told)


def test_unknown_names_are_told_with_near_ones_and_with_the_rest() -> None:
    told = problems("method.rnk=4", "strategy=fedavgg", "client.batch_size=0", "dispaly=none")
    assert any("method.rnk" in line and "method.rank" in line for line in told), told
    assert any("dispaly" in line and "display" in line for line in told)
    assert any("fedavgg" in line for line in told)
    assert any(line.startswith("client.batch_size must be") for line in told)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["cohort_size=abc"], "cohort_size"),
        (["round.min_replies=null"], "round.min_replies"),
        (["num_clients=1.5"], "num_clients"),
        (["tracking=[{a: 1}]"], "tracking"),
        (["tracking=5"], "tracking"),
        (["~method"], "method"),
        (["~selection"], "selection"),
        (["client.lr=true"], "client.lr"),
        (["client.lr=.inf"], "client.lr"),
        (["round.deadline_s=inf"], "round.deadline_s"),
        (["rounds=true"], "rounds"),
        (["seed=-1"], "seed"),
        (["round.min_replies=11"], "round.min_replies must be at most cohort_size"),
        (["model=hub"], "model.path has no value"),
        (["selection._target_=nothing.Here"], "nothing"),
        (["engine.workers=0"], "engine.workers"),
        (["client.optimizer=adam"], "client.optimizer"),
    ],
    ids=str,
)
def test_wrong_values_of_any_type_are_one_line(overrides: list[str], word: str) -> None:
    told = problems(*overrides)
    assert any(word in line for line in told), told
    assert len(told) <= 2
