"""Raw files at a URL, whose names are as little trusted as those of this machine."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import xxhash

from entire_id.errors import EntireIdError, SourceChangedError, SourceError, SourceUnreachableError
from entire_id.records import RawFile, Reason, Rejected, is_safe_path, is_utf8
from entire_id.remote import Entry, RemoteFolder
from entire_id.sources.files import MAX_FILE_BYTES, check_size

__all__ = ["RemoteFiles"]

_MAX_DEPTH = 32  # nobody nests crops deeper, but a folder that holds itself would never end
_CLOCK_STEP_NS = 1_000_000_000  # FTP, and others, cut times to whole seconds


class RemoteFiles:
    """A folder at a URL; see `Files`.

    What cannot be listed or fetched stops the run: a broken line must not pass for crops that are not there. The
    listing remembers a stamp of every file, 24 bytes each, which does not travel to other processes.
    """

    def __init__(self, url: str) -> None:
        """Connect to `url`.

        Raises:
            MissingExtraError: the package that talks to such URLs is not installed.
            SourceUnreachableError: it cannot be reached, or refuses.
            SourceError: nothing is there.
        """
        self._folder = RemoteFolder(url)
        self._stamps = _Stamps()
        with self._reached():
            try:
                self._folder.connect()
                self._folder.entries()
            except FileNotFoundError as error:
                raise SourceError(self.name, "no such folder") from error
            except NotADirectoryError as error:
                raise SourceError(self.name, "neither a folder nor a bucket; copy a zip or table here first") from error

    def __getstate__(self) -> RemoteFolder:
        return self._folder

    def __setstate__(self, folder: RemoteFolder) -> None:
        self._folder, self._stamps = folder, _Stamps()

    @property
    def name(self) -> str:
        """The URL."""
        return self._folder.name

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except EntireIdError:
            raise
        except OSError as error:
            raise SourceUnreachableError(error.filename or self.name, error.strerror or str(error)) from error

    def walk(self) -> Iterator[str | Rejected]:
        """Every file once, folder by folder: each is listed whole."""
        self._stamps = stamps = _Stamps()
        folders = [""]
        while folders:
            folder = folders.pop()
            with self._reached():
                entries = self._folder.entries(folder)
            for entry in entries:
                found = _look_at(entry, folder)
                if isinstance(found, str) and entry.kind == "folder":
                    folders.append(found)
                else:
                    if isinstance(found, str):
                        stamps.add(found, _stamp(entry))
                    yield found
        stamps.close()

    def below(self, path: str) -> Iterator[str]:
        """Paths of the usable files below the folder `path`, folder by folder."""
        folders = [path]
        while folders:
            folder = folders.pop()
            with self._reached():
                try:
                    entries = self._folder.entries(folder)
                except (FileNotFoundError, NotADirectoryError):
                    continue
            for entry in entries:
                found = _look_at(entry, folder)
                if isinstance(found, str) and entry.kind == "folder":
                    folders.append(found)
                elif isinstance(found, str):
                    yield found

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly below `path`, sorted."""
        with self._reached():
            try:
                entries = self._folder.entries(path)
            except (FileNotFoundError, NotADirectoryError):
                return []
        found = [entry.path for entry in entries if entry.kind == "folder" and isinstance(_look_at(entry, path), str)]
        return sorted(name.rpartition("/")[2] for name in found)

    def check(self, path: str) -> str | Rejected:
        """Return `path` if it is a file, else why it cannot be used."""
        if not is_safe_path(path):
            return Rejected(path, Reason.UNSAFE_PATH)
        with self._reached():
            try:
                entry = self._folder.entry(path)
            except FileNotFoundError:
                return Rejected(path, Reason.MISSING)
        return path if entry.kind == "file" else Rejected(path, Reason.NOT_AN_IMAGE, "no ordinary file")

    def read(self, path: str) -> RawFile:
        """One file, without a stamp: the listing knows it; see `records.Source`."""
        with self._reached():
            try:
                data = self._folder.read(path, MAX_FILE_BYTES + 1)
                size = len(data) if len(data) <= MAX_FILE_BYTES else self._folder.entry(path).size
            except FileNotFoundError as error:
                raise SourceChangedError(path, "vanished") from error
        check_size(size)
        return RawFile(data, ())

    def stamp(self, path: str) -> tuple[int, ...]:
        """What tells whether a file has changed; see `records.Source`. That of the listing, where there was one."""
        found = self._stamps.find(path)
        return found or _stamp(self._folder.entry(path))


class _Stamps:
    """Stamps by path, as three numbers a file."""

    def __init__(self) -> None:
        self._paths, self._newest, self._digests = array("Q"), array("q"), array("Q")
        self._order: np.ndarray | None = None

    def add(self, path: str, stamp: tuple[int, int]) -> None:
        self._paths.append(xxhash.xxh3_64_intdigest(path.encode()))
        self._newest.append(stamp[0])
        self._digests.append(stamp[1])

    def close(self) -> None:
        """Sort, once all are there."""
        paths = np.frombuffer(self._paths, np.uint64) if self._paths else np.empty(0, np.uint64)
        self._order = np.argsort(paths, kind="stable")
        self._sorted = paths[self._order]

    def find(self, path: str) -> tuple[int, int] | None:
        if self._order is None:
            return None
        digest = np.uint64(xxhash.xxh3_64_intdigest(path.encode(errors="surrogateescape")))
        place = int(np.searchsorted(self._sorted, digest))
        if place == len(self._sorted) or self._sorted[place] != digest:
            return None
        row = int(self._order[place])
        return self._newest[row], self._digests[row]


def _stamp(entry: Entry) -> tuple[int, int]:
    """Return when a file changed last and a digest of all that is known of it.

    A checksum tells every change, whatever the clocks say: then the time is 0, long ago. Where there is neither a
    checksum nor a time it is now, and nobody will rely on it.
    """
    if entry.version:
        changed_ns = 0
    else:
        changed_ns = time.time_ns() if entry.changed_ns is None else entry.changed_ns + _CLOCK_STEP_NS
    return changed_ns, xxhash.xxh3_64_intdigest(repr(entry[2:]).encode())


def _look_at(entry: Entry, folder: str) -> str | Rejected:
    """Return the path of a file or folder that may be used, else why not."""
    path, below = entry.path, f"{folder}/" if folder else ""
    if not is_utf8(path):
        return Rejected(path.encode(errors="backslashreplace").decode(), Reason.ENCODING)
    name = path.removeprefix(below)
    if path == folder or not path.startswith(below) or not name or "/" in name or name == ".":
        return Rejected(f"{path}/", Reason.UNSAFE_PATH, "a name that is empty, a dot, or leads elsewhere")
    if not is_safe_path(path):
        return Rejected(path, Reason.UNSAFE_PATH, "a backslash in its name" if "\\" in path else "")
    if path.count("/") > _MAX_DEPTH:
        return Rejected(path, Reason.UNSAFE_PATH, "too many folders within one another")
    if entry.kind == "link":
        return Rejected(path, Reason.LINK, "at a URL none is followed")
    return path if entry.kind in ("file", "folder") else Rejected(path, Reason.NOT_AN_IMAGE, "no ordinary file")
