"""The image files of a folder or an archive, read one after the other.

An archive is never unpacked: its members are read into memory, and their names are used as labels only. A
member whose name points outside the archive, or that is a link, is refused nevertheless, since an archive
that holds one was not made for this.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from scratchnn.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".zip")

_LARGEST_FILE = 1 << 28  # bytes; a small archive can expand to more than the memory


def is_archive(path: Path) -> bool:
    """Whether the name of ``path`` is that of an archive we read."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def read_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name (relative, with ``/``) and the content of every image file below ``path``.

    Files that are hidden or have no image's suffix are passed over. The order is that of the archive, or
    sorted for a folder.

    Raises:
        UserError: when the archive is damaged or has a member that is not safe.
    """
    if path.is_dir():
        yield from _read_folder(path)
        return
    try:
        if path.name.lower().endswith(".zip"):
            yield from _read_zip(path)
        else:
            yield from _read_tar(path)
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"the archive {path} is damaged or not an archive ({error})") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile: a password, an unknown compression
        raise UserError(f"the archive {path} cannot be read ({error})") from error


def fingerprint(path: Path) -> str:
    """A hash that changes when the images below ``path`` do.

    Of an archive it is the content that is hashed; of a folder the names, sizes and times of its images.
    """
    sha = hashlib.sha256()
    if path.is_dir():
        sha.update(str(path.resolve()).encode())
        for name, file in _folder_files(path):
            status = file.stat()
            sha.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    else:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def _read_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for name, file in _folder_files(path):
        yield name, file.read_bytes()


def _folder_files(path: Path) -> Iterator[tuple[str, Path]]:
    for folder, subfolders, files in os.walk(path, followlinks=True):
        subfolders.sort()
        for file in sorted(files):
            full = Path(folder, file)
            name = full.relative_to(path).as_posix()
            if _is_image(name):
                yield name, full


def _read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isdir() or not _is_image(member.name):
                continue
            if not member.isfile():
                raise UserError(f"the archive {path} is refused: its member {member.name} is not a plain file")
            name = _safe_name(member.name, member.size, path)
            content = archive.extractfile(member)
            assert content is not None  # None only for what is not a plain file
            yield name, content.read()
        # tarfile takes a cut within a header for the end; a whole archive ends with a block of zeros.
        if archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it ends too early")


def _read_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir() and _is_image(member.filename):
                name = _safe_name(member.filename, member.file_size, path)
                yield name, archive.read(member)


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in parts)
    return not hidden and name.lower().endswith(IMAGE_SUFFIXES)


def _safe_name(name: str, size: int, archive: Path) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise UserError(f"the archive {archive} is refused: its member {name} points outside of it")
    if size > _LARGEST_FILE:
        raise UserError(
            f"the archive {archive} is refused: its member {name} has {size} bytes, "
            f"more than the {_LARGEST_FILE} that an image may have"
        )
    return path.as_posix()
