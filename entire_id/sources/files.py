"""Where raw files lie: a folder or a zip archive, read without trusting any name in it."""

from __future__ import annotations

import errno
import lzma
import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Protocol

from entire_id.errors import SourceChangedError, SourceError
from entire_id.records import RawFile, Reason, Rejected, is_safe_path, is_utf8

__all__ = ["MAX_FILE_BYTES", "Files", "Folder", "ZipArchive", "check_size", "open_files"]

MAX_FILE_BYTES = 64 << 20
"""No crop is larger; a bigger file is rejected before it is read."""


class Files(Protocol):
    """A tree of files with `/`-separated relative names."""

    @property
    def name(self) -> str:
        """Where they lie, for messages: a path or a URL."""

    def walk(self) -> Iterator[str | Rejected]:
        """Every file once, in any order: its relative path, or why it cannot be used."""

    def below(self, path: str) -> Iterator[str]:
        """Paths of the usable files below the folder `path`, in any order, no more of them looked up than are taken."""

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly below `path` (`""` is the top), sorted; empty where there are none."""

    def check(self, path: str) -> str | Rejected:
        """Return `path` if it can be read, else why not: `MISSING` where there is no such file."""

    def read(self, path: str) -> RawFile:
        """One file; see `records.Source`."""

    def stamp(self, path: str) -> tuple[int, ...]:
        """What tells whether a file has changed; see `records.Source`."""


def open_files(path: Path) -> Files:
    """Return the tree at `path`, a folder or a `.zip`.

    Raises:
        SourceError: nothing is there, or it is neither.
    """
    if path.is_dir():
        return Folder(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return ZipArchive(path)
    if path.exists():
        raise SourceError(path, "neither a folder, nor a whole zip archive, nor a table (.csv, .parquet)")
    raise SourceError(path, "no such file or folder")


class Folder:
    """A folder on disk. Links to files inside it are followed, all other links are rejected."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = os.path.realpath(path)

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def walk(self) -> Iterator[str | Rejected]:
        """Every file once, in the order of the file system: one folder may hold millions."""
        yield from self._walk("")

    def below(self, path: str) -> Iterator[str]:
        """Paths of the usable files below the folder `path`, in the order of the file system."""
        return (file for file in self._walk(path) if isinstance(file, str))

    def _walk(self, folder: str) -> Iterator[str | Rejected]:
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._walk(path)
                    else:
                        yield self._file(path, entry)
        except OSError as error:
            yield Rejected(folder, Reason.UNREADABLE, error.strerror or str(error))

    def _file(self, path: str, entry: os.DirEntry[str]) -> str | Rejected:
        if not is_utf8(path):
            return Rejected(os.fsencode(path).decode(errors="backslashreplace"), Reason.ENCODING)
        if "\\" in path:
            return Rejected(path, Reason.UNSAFE_PATH, "a backslash in its name")
        return path if entry.is_file(follow_symlinks=False) else self._resolve(path)

    def check(self, path: str) -> str | Rejected:
        """Return `path` if it is a file that lies in this folder, links resolved, else why it cannot be used."""
        if not is_safe_path(path):
            return Rejected(path, Reason.UNSAFE_PATH)
        if not os.path.lexists(os.path.join(self._root, path)):
            return Rejected(path, Reason.MISSING)
        return self._resolve(path)

    def _resolve(self, path: str) -> str | Rejected:
        full = os.path.join(self._root, path)
        target = os.path.realpath(full)
        if os.path.commonpath([self._root, target]) != self._root:
            return Rejected(path, Reason.LINK, "points out of the source")
        if os.path.isfile(target):
            return path
        if os.path.islink(full):
            return Rejected(path, Reason.LINK, "points to a folder or to nothing")
        return Rejected(path, Reason.NOT_AN_IMAGE, "no ordinary file")

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly below `path`, sorted."""
        try:
            with os.scandir(os.path.join(self._root, path)) as found:
                return sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []

    def read(self, path: str) -> RawFile:
        """One file; see `records.Source`."""
        try:
            descriptor = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise SourceChangedError(path, "vanished") from error
        try:
            before = os.fstat(descriptor)
            check_size(before.st_size)
            data = os.read(descriptor, before.st_size + 1)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if len(data) != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
            raise SourceChangedError(path, "changed")
        return RawFile(data, _stamp(before))

    def stamp(self, path: str) -> tuple[int, ...]:
        """What tells whether a file, or what a link points to, has changed; see `records.Source`."""
        return _stamp(os.stat(f"{self._root}/{path}"))


class ZipArchive:
    """A zip archive, read in place. Safe to share between threads and to send to other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[ZipArchive], tuple[Path]]:
        return ZipArchive, (self.path,)

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def _archive(self) -> zipfile.ZipFile:
        """The open archive of this thread."""
        if not hasattr(self._local, "archive"):
            try:
                self._local.archive = zipfile.ZipFile(self.path)
            except _ZIP_ERRORS as error:
                raise SourceError(self.path, f"not a readable zip archive: {error}") from error
        archive: zipfile.ZipFile = self._local.archive
        return archive

    @property
    def _entries(self) -> dict[str, zipfile.ZipInfo]:
        """Name → entry; of two entries with one name the first."""
        if not hasattr(self._local, "entries"):
            self._local.entries = {}
            for info in self._archive.infolist():
                self._local.entries.setdefault(_plain_name(info), info)
        entries: dict[str, zipfile.ZipInfo] = self._local.entries
        return entries

    def walk(self) -> Iterator[str | Rejected]:
        """Every file entry once, in the order of names; of two entries with one name the first is kept."""
        entries = self._entries
        named = [(_plain_name(info), info) for info in self._archive.infolist()]
        for name, info in sorted(named, key=itemgetter(0)):
            if name.endswith("/") and not info.file_size:
                continue  # a folder
            if entries[name] is not info:
                yield Rejected(name, Reason.DUPLICATE_KEY, "twice in the archive")
            else:
                yield _check_entry(name, info)

    def below(self, path: str) -> Iterator[str]:
        """Paths of the usable entries below the folder `path`, in the order of the archive."""
        start = f"{path}/" if path else ""
        names = (name for name in self._entries if name.startswith(start))
        return (name for name in names if isinstance(self.check(name), str))

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly below `path`, sorted."""
        prefix = PurePosixPath(path).parts
        depth = len(prefix)
        holders = {name.rstrip("/").rpartition("/")[0] for name in self._entries}  # few, of millions of names
        parts = (PurePosixPath(holder).parts for holder in holders if is_safe_path(holder))
        return sorted({part[depth] for part in parts if part[:depth] == prefix and len(part) > depth})

    def check(self, path: str) -> str | Rejected:
        """Return `path` if it is an entry that can be read, else why it cannot be used."""
        info = self._entries.get(path)
        return Rejected(path, Reason.MISSING) if info is None else _check_entry(path, info)

    def stamp(self, path: str) -> tuple[int, ...]:
        """What tells whether the archive or the entry has changed; see `records.Source`."""
        info = self._entries.get(path)
        if info is None:
            raise FileNotFoundError(path)
        return *_stamp(os.stat(self.path)), info.CRC, info.file_size, info.header_offset

    def read(self, path: str) -> RawFile:
        """One entry; see `records.Source`."""
        info = self._entries.get(path)
        if info is None:
            raise SourceChangedError(path, "vanished")
        check_size(info.file_size)
        try:
            stamp = self.stamp(path)
            with self._archive.open(info) as entry:
                return RawFile(entry.read(info.file_size + 1), stamp)  # no more, whatever the compressed bytes hold
        except _ZIP_ERRORS as error:
            raise OSError(f"damaged zip entry: {error}") from error


# What zipfile and its decompressors raise on damaged archives; RuntimeError is "password required".
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def _plain_name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    while name.startswith("./"):
        name = name.removeprefix("./")
    return name


def _check_entry(name: str, info: zipfile.ZipInfo) -> str | Rejected:
    if not is_safe_path(info.orig_filename) or not is_safe_path(name) or name.endswith("/"):
        return Rejected(name, Reason.UNSAFE_PATH)
    if not is_utf8(name):
        return Rejected(name.encode(errors="backslashreplace").decode(), Reason.ENCODING)
    if stat.S_ISLNK(info.external_attr >> 16):
        return Rejected(name, Reason.LINK, "a link inside an archive")
    if info.flag_bits & 1:
        return Rejected(name, Reason.UNREADABLE, "encrypted")
    return name


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    return changed_ns, status.st_mtime_ns, status.st_size, status.st_dev, status.st_ino


def check_size(num_bytes: int) -> None:
    """Refuse, with `EFBIG`, a file that is larger than any crop."""
    if num_bytes > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"{num_bytes:,} bytes, more than {MAX_FILE_BYTES:,}")
