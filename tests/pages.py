"""Read the documentation's pages: fenced blocks, the commands in them, and links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("simulations/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    )
)

EXCUSES = {
    "needs the network": "the suite reaches nothing but the package index",
    "needs the extra tracking": "the dev environment leaves wandb out",
    "needs the extra ray": "starting Ray takes longer than this suite may; tests/engines runs it",
    "needs a running Ray cluster": "there is none here",
    "needs devices": "tests/deploy runs a server with three of them",
    "needs a server": "tests/deploy runs a server with three devices",
    "needs a second machine": "there is none here; tests/cli measures a link on loopback",
    "takes half an hour": "a study; tests/conf composes and checks its members",
}
"""Trailing comments that keep a command from being run, each with the reason. Its overrides are still composed."""

NOT_RUN = {
    "make": "its target must be in the Makefile",
    "pip": "it would change the environment that runs the tests",
}
"""First words of commands that are never run, with the reason or what is checked in their place."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: its language and text."""

    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The file that the block is, where its first line is a comment with nothing but a path."""
        found = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return found[1] if found else None


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command line: environment in front of it, words, and the comment behind it."""

    environment: dict[str, str]
    words: list[str]
    comment: str

    @property
    def overrides(self) -> list[str] | None:
        """What stands behind ``fedpeft simulate`` or ``python simulations/run.py``, None for another command."""
        for front in (["fedpeft", "simulate"], ["python", "simulations/run.py"]):
            if self.words[:2] == front:
                return self.words[2:]
        return None


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, top to bottom."""
    return [Block(language=language, text=text) for language, text in _FENCE.findall((ROOT / page).read_text())]


def commands(text: str) -> list[Command]:
    """Return the commands of a shell block, one a line; a backslash continues a line."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        environment = {}
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, environment[name] = words[0].split("=", 1)[0], words.pop(0).split("=", 1)[1]
        comment = re.search(r"\s#\s*(.*)$", line)
        found.append(Command(environment=environment, words=words, comment=comment[1].strip() if comment else ""))
    return found


def links(page: str) -> list[str]:
    """Return the targets of a page's links and images, without those in fenced blocks."""
    return _LINK.findall(_FENCE.sub("", (ROOT / page).read_text()))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
