"""Laws of unpacking: only the wanted members, never outside the folder, never more bytes than allowed."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.archive import extract_folder, read_member


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return path


def test_only_the_wanted_folder_is_unpacked(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.whl", {"p/model/a.txt": b"1", "p/model/sub/b.txt": b"22", "p/code.py": b"no"})
    out = tmp_path / "out"
    out.mkdir()
    extract_folder(archive, out, folder="p/model", max_bytes=3)
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == {"a.txt": b"1", "sub/b.txt": b"22"}


@pytest.mark.parametrize("name", ["p/../../evil", "p/..", "p/a\\..\\evil", "p/C:evil"])
def test_a_path_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with pytest.raises(DataError, match="unsafe path"):
        extract_folder(_zip(tmp_path / "a.whl", {name: b"x"}), out, folder="p", max_bytes=100)
    assert not (tmp_path / "evil").exists() and not (tmp_path / "deep" / "evil").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("p/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as bundle:
        bundle.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="link"):
        extract_folder(tmp_path / "a.whl", tmp_path, folder="p", max_bytes=100)


def test_bytes_are_counted_over_all_members(tmp_path: Path) -> None:
    """60 + 60 bytes are more than 100 though each member alone is not; deflated they are far smaller."""
    out = tmp_path / "out"
    out.mkdir()
    archive = _zip(tmp_path / "a.whl", {"p/a": b"0" * 60, "p/b": b"0" * 60})
    with pytest.raises(DataError, match="more bytes"):
        extract_folder(archive, out, folder="p", max_bytes=100)


def test_a_missing_folder_and_a_broken_archive_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no folder 'q'"):
        extract_folder(_zip(tmp_path / "a.whl", {"p/a": b""}), tmp_path, folder="q", max_bytes=1)
    (tmp_path / "b.whl").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="no sound wheel"):
        extract_folder(tmp_path / "b.whl", tmp_path, folder="q", max_bytes=1)


def _tar() -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
        member = tarfile.TarInfo("d/text")
        member.size = 5
        bundle.addfile(member, io.BytesIO(b"hello"))
        link = tarfile.TarInfo("d/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        bundle.addfile(link)
    buffer.seek(0)
    return buffer


def test_a_tar_member_is_read_whole() -> None:
    assert read_member(_tar(), "d/text", max_bytes=5) == b"hello"


@pytest.mark.parametrize(
    ("name", "max_bytes", "match"),
    [("d/text", 4, "more than 4"), ("d/link", 9, "not a regular file"), ("d/none", 9, "holds no member")],
)
def test_other_tar_members_are_refused(name: str, max_bytes: int, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_member(_tar(), name, max_bytes=max_bytes)


def test_a_truncated_tar_is_refused() -> None:
    with pytest.raises(DataError, match="no sound"):
        read_member(io.BytesIO(_tar().getvalue()[:-30]), "d/none", max_bytes=9)
