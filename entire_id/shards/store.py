"""Where a data set is made: a folder of this machine, or one at a URL."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Protocol
from uuid import uuid4

from entire_id.errors import EntireIdError, OutputExistsError, WriteFailedError
from entire_id.records import CAMERAS_FILE
from entire_id.remote import UNFINISHED, RemoteFolder
from entire_id.shards.listing import is_rejected_list
from entire_id.shards.manifest import MANIFEST_FILE, README_FILE, FileEntry
from entire_id.staging import beside, new_folder, sync

__all__ = ["LocalStore", "RemoteStore", "Store", "open_store"]

_MARK = ".unfinished"  # made first and removed last: a work folder without it is somebody else's
_BEAT_S = 60  # how often a run says that it is alive
_DEAD_AFTER_S = 600  # a run on another machine that was silent for so long is taken for dead
_MAX_NOTE_BYTES = 64 << 20
_LOOKS, _BETWEEN_LOOKS_S = 3, 0.1  # at the mark, which may just be replaced: FTP reads a file in several steps


class Store(Protocol):
    """Where a data set is made. Can be sent to other processes.

    Files are written to the scratch folder first; `place` gives them their name once they are complete.
    """

    @property
    def name(self) -> str:
        """Where it is, for messages."""

    def scratch(self) -> AbstractContextManager[Path]:
        """Give a folder of this machine to write files in."""

    def place(self, temporary: Path, path: str) -> int:
        """Give the complete file `temporary`, in a scratch folder, its name `path` and return its size in bytes."""

    def size(self, path: str) -> int:
        """Size of a file that was placed, bytes; OSError where there is none."""

    def read_note(self, name: str) -> bytes:
        """What an earlier run wrote down; OSError where it did not."""

    def write_note(self, name: str, text: str) -> None:
        """Write down what the next run must know if this one does not end well."""

    def tidy(self, files: Iterable[FileEntry]) -> None:
        """Remove what an earlier run with another plan left; raises WriteFailedError where a file is missing."""

    def publish_rejected(self, path: Path | None) -> Path | str | None:
        """Put the list of rejected files beside the data set, or remove an older one, and return where it is."""


def open_store(out: Path | str, keeps: tuple[type[BaseException], ...]) -> AbstractContextManager[tuple[Store, Path]]:
    """Give the store that becomes the data set `out` on a clean exit, and where to write the list of rejected files.

    Args:
        out: path, or URL as text; see `remote.place_of`.
        keeps: errors after which the work stays for the next run to go on with.

    Raises:
        OutputExistsError: `out` holds something, or another run is at work there.
        MissingExtraError: the package that talks to such URLs is not installed.
    """
    return _open_local(out, keeps) if isinstance(out, Path) else _open_remote(out, keeps)


# --- on this machine --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder of this machine, or one that all machines at work share; see `Store`.

    Attributes:
        tree: folder that becomes the data set.
        notes: folder that remembers finished shards.
    """

    tree: Path
    notes: Path

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        return str(self.tree)

    def scratch(self) -> AbstractContextManager[Path]:
        """Give the folder itself: a file is renamed, never copied."""
        return nullcontext(self.tree)

    def place(self, temporary: Path, path: str) -> int:
        """Flush a complete file, give it its name and return its size in bytes."""
        final = self.tree / path
        sync(temporary)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(final)
        return final.stat().st_size

    def size(self, path: str) -> int:
        """Size of a file that was placed, bytes."""
        return (self.tree / path).stat().st_size

    def read_note(self, name: str) -> bytes:
        """What an earlier run wrote down."""
        return (self.notes / name).read_bytes()

    def write_note(self, name: str, text: str) -> None:
        """Write down what the next run must know; from here on it is a fact on disk."""
        partial = self.notes / f"{name}.{os.uname().nodename}-{os.getpid()}{UNFINISHED}"
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        partial.replace(self.notes / name)

    def tidy(self, files: Iterable[FileEntry]) -> None:
        """Remove what an earlier run with another plan left.

        Raises:
            WriteFailedError: a file that was written is not there.
        """
        listed = {entry.path: entry.bytes for entry in files}
        found = {}
        for path in sorted(self.tree.rglob("*"), reverse=True):  # files before the folders that hold them
            name = path.relative_to(self.tree).as_posix()
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif name in listed:
                found[name] = path.stat().st_size
            else:
                path.unlink()
        _check_complete(self.name, listed, found)

    def publish_rejected(self, path: Path | None) -> Path | None:
        """Leave the list where it was written: that is beside the data set."""
        return path

    def clear_unfinished(self) -> None:
        """Remove the files that a killed run was writing."""
        for folder in (self.tree, self.notes):
            for path in folder.glob(f"*{UNFINISHED}"):
                path.unlink()


@contextmanager
def _open_local(out: Path, keeps: tuple[type[BaseException], ...]) -> Iterator[tuple[Store, Path]]:
    with new_folder(out, keeps=keeps) as tree:
        store = LocalStore(tree, tree.parent / "notes")
        store.clear_unfinished()
        yield store, beside(out, ".rejected.csv")


def _check_complete(name: str, listed: dict[str, int], found: dict[str, int]) -> None:
    """Refuse a data set whose files are not all where this process looks for them."""
    for path, size in listed.items():
        if found.get(path) != size:
            what = f"{size:,} bytes were written and {found.get(path, 0):,} are there: do all workers see this folder?"
            raise WriteFailedError(f"{name}/{path}", what)


# --- at a URL ---------------------------------------------------------------------------------------------------------


class RemoteStore:
    """A folder at a URL; see `Store`. Files are made on the disk of the worker and copied there when complete.

    `<url>.partial` holds the notes, and a mark that says whose work it is.
    """

    def __init__(self, url: str, owner: str) -> None:
        """Note where it is.

        Args:
            url: of the data set.
            owner: random name of the run that makes it.
        """
        self._url, self._owner = url, owner
        self._folder, self._work = RemoteFolder(url), RemoteFolder(url + UNFINISHED)

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str, str]]:
        return RemoteStore, (self._url, self._owner)

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        return self._folder.name

    def scratch(self) -> AbstractContextManager[Path]:
        """Give a folder in the temporary directory of this machine."""
        return _scratch()

    def place(self, temporary: Path, path: str) -> int:
        """Copy a complete file there, check that all of it came, and return its size in bytes.

        Raises:
            OutputExistsError: another run has taken the work over: whoever still lives of this one must stop.
        """
        if not self.is_ours():
            raise OutputExistsError(self.name, "another run is making it")
        size = temporary.stat().st_size
        self._folder.put(temporary, path)
        if self.size(path) != size:
            raise WriteFailedError(f"{self.name}/{path}", f"of {size:,} bytes {self.size(path):,} are there")
        return size

    def size(self, path: str) -> int:
        """Size of a file that was placed, bytes."""
        return self._folder.entry(path).size

    def read_note(self, name: str) -> bytes:
        """What an earlier run wrote down."""
        return self._work.read(f"notes/{name}", _MAX_NOTE_BYTES)

    def write_note(self, name: str, text: str) -> None:
        """Write down what the next run must know."""
        self._work.write(f"notes/{name}", text.encode())

    def tidy(self, files: Iterable[FileEntry]) -> None:
        """Remove what an earlier run with another plan left.

        Raises:
            WriteFailedError: a file that was written is not there.
        """
        listed = {entry.path: entry.bytes for entry in files}
        found = {}
        for entry in list(self._folder.files()):
            if entry.path in listed:
                found[entry.path] = entry.size
            elif _may_be_ours(entry.path):
                self._folder.remove(entry.path)
        _check_complete(self.name, listed, found)

    def publish_rejected(self, path: Path | None) -> str | None:
        """Put the list of rejected files beside the data set, or remove an older one, and return its URL."""
        place = RemoteFolder(self._url + ".rejected.csv")
        if path is None:
            place.remove()
            return None
        place.put(path, "")
        return place.name

    def is_ours(self) -> bool:
        """Tell whether no other run has taken the work over."""
        mark = _read_mark(self._work)
        return mark is not None and mark.get("owner") == self._owner

    def finish(self) -> None:
        """Remove the notes, and the mark last."""
        for entry in list(self._work.files()):
            if entry.path != _MARK:
                self._work.remove(entry.path)
        self._work.remove(_MARK)
        self._work.remove_folders()

    def discard(self) -> None:
        """Remove everything that this work has made."""
        for entry in list(self._folder.files()):
            if _may_be_ours(entry.path):
                self._folder.remove(entry.path)
        self._folder.remove_folders()
        self.finish()


@contextmanager
def _scratch() -> Iterator[Path]:
    with TemporaryDirectory(prefix="entire-id-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _may_be_ours(path: str) -> bool:
    """Tell whether packing writes files of that name; no other is ever removed at a URL."""
    names = (CAMERAS_FILE, MANIFEST_FILE, README_FILE)
    return path.startswith(("data/", "meta/")) or path in names or path.endswith(UNFINISHED)


@contextmanager
def _open_remote(url: str, keeps: tuple[type[BaseException], ...]) -> Iterator[tuple[Store, Path]]:
    folder, work = RemoteFolder(url), RemoteFolder(url + UNFINISHED)
    _check_url(folder)
    with _this_machine(url) as lock, _scratch() as scratch:
        _check_target(folder, work)
        _check_rejected(url)
        owner = uuid4().hex
        _claim(folder, work, owner, lock)
        store = RemoteStore(url, owner)
        beats = threading.Event()
        beat = threading.Thread(target=_keep_beating, args=(work.url, owner, lock, beats), daemon=True)
        beat.start()
        try:
            yield store, scratch / "rejected.csv"
        except BaseException as error:
            _stop(beats, beat)
            with suppress(OSError):  # the error that is on its way matters more
                _give_up(store, work, keep=isinstance(error, keeps) and not isinstance(error, OutputExistsError))
            raise
        _stop(beats, beat)
        store.finish()


def _stop(beats: threading.Event, beat: threading.Thread) -> None:
    beats.set()
    beat.join()


def _give_up(store: RemoteStore, work: RemoteFolder, *, keep: bool) -> None:
    """Leave the work for the next run, on whatever machine, or remove it."""
    if not store.is_ours():
        return
    if keep:
        work.write(_MARK, _mark("", []))
    else:
        store.discard()


def _check_url(folder: RemoteFolder) -> None:
    """Refuse a URL that leaves no room beside it, or that no set should be written to file by file."""
    folder.connect()
    protocol, _, rest = folder.url.partition("://")
    if protocol == "hf":
        why = "every file would be a commit of its own; pack into a folder here and upload that"
        raise OutputExistsError(folder.name, why)
    if "/" not in rest and protocol != "memory":
        raise OutputExistsError(folder.name, "the work needs a name beside it; name a folder inside")


def _check_target(folder: RemoteFolder, work: RemoteFolder) -> None:
    """Refuse a folder that holds a data set, or anything that is not the unfinished work of a run of ours."""
    found = [entry.path for entry in _entries(folder)]
    if MANIFEST_FILE in found or (found and _read_mark(work) is None):
        raise OutputExistsError(folder.name)


def _entries(folder: RemoteFolder) -> list[Any]:
    try:
        return list(folder.entries())
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise OutputExistsError(folder.name, "it is a file") from error


def _check_rejected(url: str) -> None:
    place = RemoteFolder(url + ".rejected.csv")
    try:
        head = place.read("", 4096)
    except FileNotFoundError:
        return
    if not is_rejected_list(head):
        raise OutputExistsError(place.name, "it is needed for the list of rejected files, and is something else")


# --- who is at work at a URL ---


@contextmanager
def _this_machine(url: str) -> Iterator[list[str | int]]:
    """Hold the lock that only one run of this machine has for `url`, and give a name that other machines lack."""
    folder = Path(gettempdir()).resolve()
    path = folder / f"entire-id-{os.getuid()}-{hashlib.sha256(url.encode()).hexdigest()[:16]}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
            if os.fstat(lock).st_ino != path.stat().st_ino:
                raise FileNotFoundError(path)
        except (BlockingIOError, FileNotFoundError) as error:  # another run holds it, or has just ended and removed it
            raise OutputExistsError(RemoteFolder(url).name, "another run is making it") from error
        status = folder.stat()
        try:
            yield [os.uname().nodename, str(path), status.st_dev, status.st_ino]
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _mark(owner: str, lock: list[str | int], beat: float = 0.0) -> bytes:
    return json.dumps({"entire-id": "pack", "owner": owner, "lock": lock, "beat": beat}).encode()


def _read_mark(work: RemoteFolder) -> dict[str, Any] | None:
    """Return the mark of the run that is, or was, at work; None where there is none of ours."""
    for _ in range(_LOOKS):
        with suppress(FileNotFoundError, ValueError):
            mark = json.loads(work.read(_MARK, 4096))
            return mark if isinstance(mark, dict) and mark.get("entire-id") == "pack" else None
        time.sleep(_BETWEEN_LOOKS_S)
    return None


def _claim(folder: RemoteFolder, work: RemoteFolder, owner: str, lock: list[str | int]) -> None:
    """Put this run's mark on the work, or take over that of a run that is dead."""
    found, ours = _entries(work), _mark(owner, lock, time.time())
    mark = _read_mark(work) if found else None
    if mark is None:
        if found:
            raise OutputExistsError(work.name, "it is needed for the work, and holds something else")
        try:
            work.create(_MARK, ours)
        except FileExistsError as error:
            raise OutputExistsError(folder.name, "another run is making it") from error
        return
    silent_s = time.time() - float(mark.get("beat", 0))
    # Whoever wrote the same lock's name held that lock, which is free now.
    if mark.get("lock") != lock and silent_s < _DEAD_AFTER_S:
        host = next(iter(mark.get("lock") or []), "somewhere")
        minutes = _DEAD_AFTER_S // 60
        why = f"another run, on {host}, was at work {silent_s:.0f} s ago; it is dead once silent for {minutes} minutes"
        raise OutputExistsError(folder.name, why)
    work.write(_MARK, ours)


def _keep_beating(url: str, owner: str, lock: list[str | int], beats: threading.Event) -> None:
    """Say every minute that the run is alive; a thread of its own has connections of its own."""
    work = RemoteFolder(url)
    while not beats.wait(_BEAT_S):
        with suppress(OSError, EntireIdError):  # the next one may come through
            mark = _read_mark(work)
            if mark is None or mark.get("owner") != owner:
                return
            work.write(_MARK, _mark(owner, lock, time.time()))
