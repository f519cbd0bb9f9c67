"""Read chosen members out of wheels and sdists, and nothing else.

An archive is opened only after its sha256 was checked; the checks here are the second fence.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from fedpeft.core.errors import DataError

_CHUNK_BYTES = 1 << 20


def extract_folder(archive: Path, out: Path, *, folder: str, max_bytes: int) -> None:
    """Unpack one folder of a zip archive (a wheel is one) into ``out``.

    Args:
        archive: the zip file.
        out: an existing empty folder; members land in it without the prefix ``folder``.
        folder: path inside the archive, e.g. ``my_package/model``.
        max_bytes: most bytes that all members together may unpack to, counted while they unpack.

    Raises:
        DataError: no zip archive, no such folder, a member that would leave ``out`` or is a link, or too many bytes.
    """
    left = max_bytes
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = [m for m in bundle.infolist() if m.filename.startswith(f"{folder}/") and not m.is_dir()]
            if not members:
                raise DataError(f"{archive.name} holds no folder {folder!r}: delete the archive and fetch it again")
            for member in members:
                target = out / safe_path(member.filename, archive.name).relative_to(folder)
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise DataError(f"{archive.name} holds a link, {member.filename!r}: refused")
                target.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(member) as source, open(target, "xb") as sink:
                    left -= _copy(source, sink, left, archive.name)
    except (zipfile.BadZipFile, zlib.error, FileExistsError) as error:
        raise DataError(f"{archive.name} is no sound wheel ({error}): delete it and fetch it again") from error


def safe_path(name: str, archive: str) -> PurePosixPath:
    """Return a member's name as a relative path that stays below the folder it is joined to.

    Args:
        name: the name as the archive gives it.
        archive: name of the archive, for the message.

    Raises:
        DataError: the name is absolute, has ``..`` in it, or a backslash or colon that some systems read as a path.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise DataError(f"{archive} holds the unsafe path {name!r}: refused")
    return path


def read_member(archive: Path | IO[bytes], name: str, *, max_bytes: int) -> bytes:
    """Return one regular file of a ``.tar.gz`` archive as bytes, without writing anything to disk.

    Args:
        archive: path or open binary file.
        name: full name of the member.
        max_bytes: the largest size accepted.

    Raises:
        DataError: no tar.gz archive, no such member, not a regular file, or too large.
    """
    shown = archive.name if isinstance(archive, Path) else "inner archive"
    try:
        with _open_tar(archive) as bundle:
            member = bundle.getmember(name)
            if not member.isreg():
                raise DataError(f"{shown}: member {name!r} is not a regular file: refused")
            if member.size > max_bytes:
                raise DataError(f"{shown}: member {name!r} has {member.size} bytes, more than {max_bytes}: refused")
            source = bundle.extractfile(member)
            assert source is not None, "isreg() was checked above"
            return source.read()
    except KeyError as error:
        raise DataError(f"{shown} holds no member {name!r}: delete the archive and fetch it again") from error
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{shown} is no sound tar.gz ({error}): delete it and fetch it again") from error


def _open_tar(archive: Path | IO[bytes]) -> tarfile.TarFile:
    if isinstance(archive, Path):
        return tarfile.open(archive, mode="r:gz")
    return tarfile.open(fileobj=archive, mode="r:gz")


def _copy(source: IO[bytes], sink: IO[bytes], max_bytes: int, archive: str) -> int:
    # Counted here because the size that a zip declares is only a claim.
    copied = 0
    while chunk := source.read(_CHUNK_BYTES):
        copied += len(chunk)
        if copied > max_bytes:
            raise DataError(f"{archive} unpacks to more bytes than its entry allows: refused")
        sink.write(chunk)
    return copied


def remove_tree(folder: Path) -> None:
    """Delete a folder and all below it; a missing one is fine."""
    if folder.exists():
        shutil.rmtree(folder)
