"""Where the bytes of a packed data set come from: a folder, the Hub, a web server, an object store."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from entire_id.errors import DatasetNotFoundError, DownloadError
from entire_id.loading.cache import RangeCache
from entire_id.remote import RemoteFolder, place_of
from entire_id.repository import repository_at

__all__ = ["FetchFailedError", "FetchOptions", "Files", "LocalFiles", "Place", "RemoteFiles", "open_files", "pinned"]

_T = TypeVar("_T")

_MAX_OPEN = 256  # shards kept open: a process may open 1,024 files unless it is told otherwise
_MAX_WAIT_S = 30.0
_LOOK_EVERY_S = 0.5  # how late a wait notices that the program ends
_MAX_ASKED_WAIT_S = 300.0  # the Hub counts requests in windows of five minutes


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How the bytes of a remote data set are fetched; a folder of this machine needs none of it but `revision`.

    Attributes:
        revision: branch, tag or commit of a repository on the Hub; its default branch by default.
        retries: how often a request that failed is repeated.
        timeout_s: how long a connection to the Hub or a web server may say nothing, s; file systems of other URLs, such
            as s3 and ftp, wait as they are configured to.
        backoff_s: wait before the first repetition, s; it doubles with each, up to 30 s, and varies by half.
        cache_dir: folder that keeps what was fetched; None for none. Several processes may share it.
        cache_bytes: how much it keeps at most; what was used longest ago goes first.
    """

    revision: str | None = None
    retries: int = 6
    timeout_s: float = 30.0
    backoff_s: float = 0.5
    cache_dir: Path | None = None
    cache_bytes: int = 10 * 2**30


class Files(Protocol):
    """The files of a packed data set, wherever they lie.

    Several threads may use them, and processes that were forked or got a pickled copy: each has its own connections.

    Attributes:
        content: digest of the data set's content; `""` until the manifest was read. Remote bytes are cached under it.
    """

    content: str

    @property
    def name(self) -> str:
        """Where they lie, for messages."""

    @property
    def is_local(self) -> bool:
        """Whether they lie on this machine."""

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return the bytes of a file from `start` on, up to `stop`, exclusive, or its end.

        Raises:
            FileNotFoundError: there is no such file.
            EOFError: it ends before `stop`.
            DownloadError: the other end refuses, or does not deliver, however often it is asked.
            RepositoryNotFoundError: the Hub refuses.
            OSError: the system refuses.
        """

    def size(self, path: str) -> int:
        """Return the bytes of a file. Raises as `read` does."""

    def forget(self, path: str, start: int = 0, stop: int | None = None) -> None:
        """Drop what a cache keeps of `read(path, start, stop)`: it was found to be damaged."""

    def close(self) -> None:
        """Close open files; a later `read` opens them again."""


def open_files(where: str | Path, options: FetchOptions | None = None) -> Files:
    """Return the files of the data set at `where`; what a revision means is asked once, here.

    Args:
        where: a folder; a repository on the Hub, `owner/name[@revision]` or `hf://datasets/owner/name[@revision]`; or a
            URL: `https://host/folder`, `s3://bucket/folder` … A `Path` is always a folder, and a folder wins over a
            repository of that name.
        options: how remote bytes are fetched; `FetchOptions()` by default.

    Raises:
        DatasetNotFoundError: neither a folder nor the name of a repository.
        RepositoryNotFoundError: no such repository or revision, access to it is gated, or it cannot be reached.
        MissingExtraError: the package that talks to such URLs is not installed.
        ValueError: a revision of what has none.

    Example:
        >>> files = open_files("hf://datasets/owner/entire-id@v1.0.0")  # doctest: +SKIP
        >>> files.read("cameras.csv")[:5]  # doctest: +SKIP
        b'camid'
    """
    options = options or FetchOptions()
    repository = repository_at(where, options.revision)
    if repository is not None:
        from entire_id.loading.web import HubPlace

        return RemoteFiles(HubPlace.resolve(*repository, options.timeout_s), options)
    if options.revision is not None:
        raise ValueError(f"revision {options.revision!r} belongs to a repository; {str(where)!r} is none")
    place = place_of(where)
    if isinstance(place, Path):
        return LocalFiles(place.expanduser())
    if place.startswith(("http://", "https://")):
        from entire_id.loading.web import WebPlace

        return RemoteFiles(WebPlace(place, options.timeout_s), options)
    return RemoteFiles(FolderPlace(place), options)


def pinned(where: str | Path) -> str | Path:
    """Return `where`, with the commit that it means now if it is a repository: whoever opens that sees the same.

    Raises:
        DatasetNotFoundError, RepositoryNotFoundError, MissingExtraError: see `open_files`.
    """
    files = open_files(where)
    return where if files.is_local else files.name


class LocalFiles:
    """The files of a folder of this machine."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        """Note where it is; nothing is opened yet.

        Raises:
            DatasetNotFoundError: there is no such folder.
        """
        if not folder.exists():
            raise DatasetNotFoundError(folder, "no such folder")
        self.folder = folder
        self.name = str(folder)
        self.content = ""
        self._start()

    def _start(self) -> None:
        self._descriptors: dict[str, int] = {}
        weakref.finalize(self, _close_all, self._descriptors)

    def __getstate__(self) -> dict[str, object]:
        """Open files do not travel to other processes."""
        return {"folder": self.folder, "name": self.name, "content": self.content}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Files.read`."""
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            return self._read_first(path, start, stop)
        return _pread(descriptor, path, start, stop)

    def _read_first(self, path: str, start: int, stop: int | None) -> bytes:
        descriptor = os.open(self.folder / path, os.O_RDONLY | os.O_CLOEXEC)
        # Threads may come here at once: one of them wins. A whole file is read once only, and many are no shards.
        if stop is None or len(self._descriptors) >= _MAX_OPEN:
            kept = -1
        else:
            kept = self._descriptors.setdefault(path, descriptor)
        try:
            return _pread(descriptor, path, start, stop)
        finally:
            if kept != descriptor:
                os.close(descriptor)

    def size(self, path: str) -> int:
        """See `Files.size`."""
        return (self.folder / path).stat().st_size

    def forget(self, path: str, start: int = 0, stop: int | None = None) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """See `Files.close`."""
        _close_all(self._descriptors)


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _pread(descriptor: int, path: str, start: int, stop: int | None) -> bytes:
    if stop is None:
        stop = os.fstat(descriptor).st_size
    data = os.pread(descriptor, stop - start, start)
    if len(data) == stop - start:
        return data
    parts = [data]  # a signal, or more than 2 GiB at once
    position = start + len(data)
    while position < stop and (data := os.pread(descriptor, stop - position, position)):
        parts.append(data)
        position += len(data)
    if position < stop:
        raise EOFError(f"{path} ends at byte {position:,}, before {stop:,}")
    return b"".join(parts)


class FetchFailedError(Exception):
    """One attempt failed: why, whether another may succeed, and how long the other end wants to be left alone, s."""

    def __init__(self, reason: str, *, is_final: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.is_final = is_final
        self.wait_s = wait_s


class Place(Protocol):
    """One attempt at remote bytes; can be pickled, and connects anew in every process."""

    @property
    def name(self) -> str:
        """Where it is, for messages."""

    def fetch(self, path: str, start: int, stop: int | None) -> bytes:
        """Ask once for bytes.

        Raises:
            FetchFailedError: they did not come, or too few or too many.
            FileNotFoundError: there is no such file.
            EOFError: it ends before `stop`.
        """

    def fetch_size(self, path: str) -> int:
        """Ask once for the size of a file. Raises as `fetch` does."""


class RemoteFiles:
    """The files of a remote data set: every request is repeated until it succeeds or there is no hope."""

    is_local = False

    def __init__(self, place: Place, options: FetchOptions) -> None:
        """Note where it is; nothing is asked yet.

        Raises:
            WriteFailedError: the cache's folder cannot be made.
        """
        self.name = place.name
        self.content = ""
        self._place = place
        self._options = options
        self._cache = RangeCache(options.cache_dir, options.cache_bytes) if options.cache_dir else None

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Files.read`."""
        if stop is not None and stop <= start:
            return b""
        cache = self._cache if self.content else None  # before that, nobody knows of which version the bytes are
        key = self._key(path, start, stop)
        data = cache.get(key) if cache else None
        if data is None:
            data = self._insist(lambda: self._place.fetch(path, start, stop), path, (start, stop))
            if cache:
                cache.put(key, data)
        return data

    def size(self, path: str) -> int:
        """See `Files.size`."""
        return self._insist(lambda: self._place.fetch_size(path), path, (0, None))

    def forget(self, path: str, start: int = 0, stop: int | None = None) -> None:
        """See `Files.forget`."""
        if self._cache:
            self._cache.forget(self._key(path, start, stop))

    def _key(self, path: str, start: int, stop: int | None) -> str:
        return f"{self.content}\0{path}\0{start}\0{stop}"

    def close(self) -> None:
        """Connections belong to the process, not to one data set."""

    def _insist(self, request: Callable[[], _T], path: str, span: tuple[int, int | None]) -> _T:
        """Repeat a request until it succeeds."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return request()
            except FetchFailedError as error:
                self._wait(error, path, span, attempt)

    def _wait(self, error: FetchFailedError, path: str, span: tuple[int, int | None], attempt: int) -> None:
        """Wait before the next attempt, or give up."""
        if error.is_final or attempt > self._options.retries:
            raise DownloadError(f"{self.name}/{path}", span, attempt, str(error)) from error
        backoff_s = min(self._options.backoff_s * 2 ** (attempt - 1), _MAX_WAIT_S)
        # Its own generator, from the system's noise: processes that failed together must not come back together.
        jitter = random.Random().uniform(0.5, 1.5)
        if not _pause(max(backoff_s * jitter, min(error.wait_s, _MAX_ASKED_WAIT_S))):
            reason = f"{error}; the program ends"
            raise DownloadError(f"{self.name}/{path}", span, attempt, reason) from error


def _pause(wait_s: float) -> bool:
    """Wait; return whether all of it was waited for. The end of the program cuts it short."""
    while wait_s > _LOOK_EVERY_S:
        if _is_exiting():
            return False
        time.sleep(_LOOK_EVERY_S)
        wait_s -= _LOOK_EVERY_S
    time.sleep(wait_s)
    return True


def _is_exiting() -> bool:
    """Tell whether the program has come to its end, and waits for the threads of executors before `atexit` is called.

    Nothing tells a thread so, but executors take no more work from then on.
    """
    try:
        ThreadPoolExecutor(1).submit(int)
    except RuntimeError as error:
        return "shutdown" in str(error)  # the system may also be short of threads
    return False


_CONNECTING = threading.Lock()


def _renew_lock() -> None:
    global _CONNECTING
    _CONNECTING = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)  # a thread of the parent may have held it


class _Connection(NamedTuple):
    """What one process reads by. `lock` is for file systems that do one thing after the other."""

    process: int
    folder: RemoteFolder
    lock: threading.Lock


def _connection(url: str) -> _Connection:
    return _Connection(os.getpid(), RemoteFolder(url), threading.Lock())


class FolderPlace:
    """A folder at any URL that fsspec has a file system for."""

    def __init__(self, url: str) -> None:
        """Connect.

        Raises:
            MissingExtraError: the package that talks to such URLs is not installed.
            DatasetNotFoundError: nobody knows such URLs, or the other end does not answer.
        """
        self._url = url
        self._opened = _connection(url)
        self.name = self._opened.folder.name
        try:
            self._opened.folder.connect()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise DatasetNotFoundError(self.name, why, "Look at the URL, and whether the other end answers") from error

    def __reduce__(self) -> tuple[type[FolderPlace], tuple[str]]:
        return FolderPlace, (self._url,)

    def fetch(self, path: str, start: int, stop: int | None) -> bytes:
        """See `Place.fetch`."""
        with self._attempt() as folder:
            data = folder.read(path, stop, start)
        if stop is not None and len(data) != stop - start:
            if self.fetch_size(path) < stop:
                raise EOFError(f"{self.name}/{path} ends before byte {stop:,}")
            raise FetchFailedError(f"{len(data):,} bytes came, not {stop - start:,}")
        return data

    def fetch_size(self, path: str) -> int:
        """See `Place.fetch_size`."""
        with self._attempt() as folder:
            return folder.entry(path).size

    def _own(self) -> _Connection:
        """Return this process's: a forked child must not use its parent's connections, nor wait for its lock."""
        if self._opened.process != os.getpid():
            with _CONNECTING:
                if self._opened.process != os.getpid():  # or another thread was first
                    self._opened = _connection(self._url)
        return self._opened

    @contextmanager
    def _attempt(self) -> Iterator[RemoteFolder]:
        _, folder, lock = self._own()
        try:
            with nullcontext() if folder.is_concurrent else lock:
                yield folder
        except FileNotFoundError:
            raise
        except OSError as error:
            raise FetchFailedError(str(error), is_final=isinstance(error, PermissionError)) from error
