"""What an emulated ARM64 system is made with, and what is said where that is missing."""

from __future__ import annotations

from pathlib import Path

import arm64_root
import pytest


def test_missing_programs_are_named_with_what_brings_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(arm64_root.Missing, match="no mmdebstrap, proot, qemu-aarch64-static here") as lack:
        arm64_root.made(tmp_path / "cache")
    assert "apt-get install mmdebstrap proot qemu-user-static" in str(lack.value)
    assert not (tmp_path / "cache").exists()


def test_an_index_that_is_not_there_is_missing_and_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_EXTRA_INDEX_URL", "UV_INDEX", "UV_FIND_LINKS", "UV_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    settings = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_NO_CONFIG": "1", "UV_NO_CACHE": "1"}
    for name, value in {**settings, "UV_HTTP_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(arm64_root.Missing, match="package index cannot be reached"):
        arm64_root.install(tmp_path)


def test_another_version_of_a_dependency_is_another_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cached root must not outlive the constraints that it was made by."""
    before = arm64_root.version()
    assert arm64_root.version() == before
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((arm64_root.REPOSITORY / name).read_text())
    pins = tmp_path / "constraints.txt"
    pins.write_text(pins.read_text().replace("peft==", "peft==9"))
    monkeypatch.setattr(arm64_root, "REPOSITORY", tmp_path)
    assert arm64_root.version() != before
