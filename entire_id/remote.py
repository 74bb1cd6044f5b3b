"""Folders at a URL: `s3://bucket/crops`, `hf://datasets/…`, `ftp://…`; whatever fsspec has a file system for."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from entire_id.errors import EntireIdError, MissingExtraError

__all__ = ["UNFINISHED", "Entry", "RemoteFolder", "is_url", "place_of", "shown"]

UNFINISHED = ".partial"
"""What the names of files end in until they are complete."""

_LOCAL = ("file", "local")
_USUAL = ("https://", "hf://", "s3://", "gs://", "abfs://", "ftp://", "sftp://")  # what a message names
# There a file appears when it is complete, replaces another at once, and folders need not be made.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "r2", "memory"})
# What file systems call the time of the last change, and what tells one content from another.
_TIMES = ("LastModified", "last_modified", "mtime", "modify", "updated", "timeModified", "modified", "created")
_VERSIONS = ("ETag", "etag", "checksum", "md5Hash", "content_md5", "blob_id", "oid", "sha256", "generation")
_ATTEMPTS = 4  # to make a folder and those above it, while others do the same
_KINDS = {"file": "file", "directory": "folder", "link": "link"}


def is_url(where: str | Path) -> bool:
    """Tell whether `where` is a URL rather than a path.

    >>> is_url("s3://bucket/crops"), is_url("crops"), is_url("C:/crops")
    (True, False, False)
    """
    return "://" in str(where)


def place_of(where: str | Path) -> Path | str:
    """Return the path that `where` names on this machine, or the URL that it is.

    `pathlib` takes a slash from a URL, so that one stays text.

    >>> str(place_of("file:///shared/crops")), place_of("s3://bucket/crops/")
    ('/shared/crops', 's3://bucket/crops')
    """
    if not is_url(where):
        return Path(where)
    protocol, _, rest = str(where).partition("://")
    return Path(rest) if protocol in _LOCAL else str(where).rstrip("/")


def shown(url: str) -> str:
    """Return a URL without the name and password that may stand in it.

    >>> shown("ftp://me:secret@host/crops")
    'ftp://host/crops'
    """
    return re.sub(r"://[^/@]*@", "://", url)


class Entry(NamedTuple):
    """What a listing says of one file or folder.

    Attributes:
        path: `/`-separated, relative to the listed `RemoteFolder`; as the other end gives it, so not to be trusted.
        kind: `file`, `folder`, `link` or `other`.
        size: bytes of a file.
        changed_ns: when it last changed, nanoseconds since 1970; None where nobody says.
        version: what differs once the bytes do, `""` where nobody says.
    """

    path: str
    kind: str
    size: int
    changed_ns: int | None
    version: str


def _check_known(protocol: str) -> None:
    """Check that there is a file system for URLs of a protocol.

    Raises:
        ImportError: there is, but the package that talks to them is not installed.
        OSError: nobody knows such URLs.
    """
    from fsspec.registry import get_filesystem_class

    try:
        get_filesystem_class(protocol)
    except ValueError as error:
        known = f"known are {', '.join(_USUAL)} and others of fsspec.available_protocols()"
        raise OSError(errno.EPROTONOSUPPORT, f"nobody knows {protocol}:// URLs; {known}") from error


class RemoteFolder:
    """A folder at a URL. Can be sent to other processes, each of which connects by itself.

    Whatever the other end, or the package that talks to it, raises arrives as an `OSError`.
    """

    def __init__(self, url: str) -> None:
        """Note where it is; nothing is asked yet."""
        self.url = url.rstrip("/")
        self._opened: tuple[Any, str] | None = None

    def __reduce__(self) -> tuple[type[RemoteFolder], tuple[str]]:
        return RemoteFolder, (self.url,)

    @property
    def name(self) -> str:
        """The URL, for messages."""
        return shown(self.url)

    def connect(self) -> None:
        """Make the file system ready.

        Raises:
            MissingExtraError: the package that talks to such URLs is not installed.
            OSError: nobody knows such URLs, or the other end does not answer.
        """
        if self._opened is not None:
            return
        from fsspec.core import url_to_fs

        protocol = self.url.partition("://")[0]
        try:
            _check_known(protocol.rpartition("::")[2])
            with self._border():
                # Listings that are remembered hide what other processes write meanwhile.
                self._opened = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or str(error)
            raise MissingExtraError(str(missing), f"{protocol}://") from error

    @property
    def _fs(self) -> Any:  # noqa: ANN401 fsspec has no types
        self.connect()
        return self._opened[0] if self._opened else None

    @property
    def is_concurrent(self) -> bool:
        """Whether several threads may use it at once: a session of FTP, say, does one thing after the other."""
        return bool(self._fs.async_impl)

    @property
    def _is_object_store(self) -> bool:
        protocol = self._fs.protocol
        return not _OBJECT_STORES.isdisjoint([protocol] if isinstance(protocol, str) else protocol)

    def _full(self, path: str) -> str:
        self.connect()
        root = (self._opened[1] if self._opened else "").rstrip("/")
        return f"{root}/{path}" if path else root

    @contextmanager
    def _border(self, path: str = "") -> Iterator[None]:
        try:
            yield
        except (EntireIdError, OSError, ImportError, MemoryError):
            raise
        except Exception as error:  # botocore, aiohttp, ftplib, paramiko …: each package has a tree of its own
            where = f"{self.name}/{path}" if path else self.name
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", where) from error

    # --- looking ---

    def entries(self, folder: str = "") -> list[Entry]:
        """Return what lies directly in `folder`; the listing is one request, or one a thousand files.

        Raises:
            FileNotFoundError: there is no such folder.
            NotADirectoryError: it is a file.
        """
        full = self._full(folder)
        with self._border(folder):
            found = self._fs.ls(full, detail=True)
        entries = [self._entry(info) for info in found]
        if len(entries) == 1 and self._is_file(folder, entries[0]):
            raise NotADirectoryError(errno.ENOTDIR, "a file, not a folder", f"{self.name}/{folder}")
        # Object stores keep an empty object with a folder's name to show that the folder is there.
        return [entry for entry in entries if entry.path != folder or entry.kind != "file"]

    def _is_file(self, folder: str, only: Entry) -> bool:
        """Tell whether a listing of one entry is that of a file: some servers name it by its path, some below it."""
        if only.kind != "file" or not only.size:
            return False
        if only.path == folder:
            return True
        last = self._full(folder).rpartition("/")[2]
        if only.path.rpartition("/")[2] != last:
            return False
        with suppress(FileNotFoundError):
            return self.entry(folder).kind == "file"
        return False

    def files(self) -> Iterator[Entry]:
        """Yield every file below, of folders that we wrote ourselves; none where there is no such folder."""
        todo = [""]
        while todo:
            folder = todo.pop()
            with suppress(FileNotFoundError):
                for entry in self.entries(folder):
                    if entry.kind == "folder" and entry.path != folder:
                        todo.append(entry.path)
                    elif entry.kind == "file":
                        yield entry

    def entry(self, path: str) -> Entry:
        """Return what the other end says of one file or folder.

        Raises:
            FileNotFoundError: it is not there.
        """
        full = self._full(path)
        with self._border(path):
            return self._entry(self._fs.info(full))

    def _entry(self, info: dict[str, Any]) -> Entry:
        root, name = self._full(""), str(info["name"])
        if name.strip("/") == root.strip("/"):
            path = ""
        else:
            path = name[len(root) + 1 :] if name.startswith(f"{root}/") else name
        kind = "link" if info.get("islink") else _KINDS.get(str(info.get("type")), "other")
        changed = [changed for key in _TIMES if (changed := _nanoseconds(info.get(key))) is not None]
        versions = [str(info[key]) for key in _VERSIONS if info.get(key)]
        size = int(info.get("size") or 0)
        return Entry(path.rstrip("/"), kind, size, changed[0] if changed else None, "".join(versions[:1]))

    def read(self, path: str, stop: int | None, start: int = 0) -> bytes:
        """Return the bytes of a file from `start` on, up to `stop` or its end.

        Raises:
            FileNotFoundError: it is not there.
        """
        full = self._full(path)
        with self._border(path):
            try:
                # One request: a size is not asked for first.
                data: bytes = self._fs.cat_file(full, start=start, end=stop)
            except FileNotFoundError:
                raise
            except OSError:
                if self.entry(path).size:  # an empty file has no first byte, and some stores mind
                    raise
                return b""
            return data

    # --- writing ---

    def write(self, path: str, data: bytes) -> None:
        """Write a small file; another of that name is replaced."""
        full, temporary = self._full(path), self._temporary(path)
        with self._border(path):
            self._make_parent(full)
            self._fs.pipe_file(temporary, data)
            self._rename(temporary, full)

    def create(self, path: str, data: bytes) -> None:
        """Write a small file of which there is none yet; where stores cannot tell, another is replaced.

        Raises:
            FileExistsError: there is one.
        """
        full = self._full(path)
        try:
            with self._border(path):
                self._make_parent(full)
                self._fs.pipe_file(full, data, mode="create")
        except (FileExistsError, PermissionError):
            raise
        except OSError:  # a store that does not know conditions
            self.write(path, data)

    def put(self, file: Path, path: str) -> None:
        """Copy a file of this machine there; it has its name when it is complete."""
        full, temporary = self._full(path), self._temporary(path)
        with self._border(path):
            self._make_parent(full)
            self._fs.put_file(str(file), temporary)
            self._rename(temporary, full)

    def remove(self, path: str = "") -> None:
        """Remove a file, if it is there."""
        full = self._full(path)
        try:
            with self._border(path):
                self._fs.rm_file(full)
        except OSError:
            if self._exists(path):
                raise

    def _exists(self, path: str) -> bool:
        try:
            self.entry(path)
        except FileNotFoundError:
            return False
        return True

    def remove_folders(self) -> None:
        """Remove the folders below, and this one, if they are empty."""
        if self._is_object_store:
            return
        folders = [""]
        for folder in folders:
            with suppress(OSError):
                folders.extend(entry.path for entry in self.entries(folder) if entry.kind == "folder")
        for folder in reversed(folders):
            with suppress(OSError), self._border(folder):
                self._fs.rmdir(self._full(folder))

    def _temporary(self, path: str) -> str:
        full = self._full(path)
        return full if self._is_object_store else f"{full}.{uuid4().hex[:8]}{UNFINISHED}"

    def _make_parent(self, full: str) -> None:
        parent = full.rpartition("/")[0]
        if not parent or self._is_object_store:
            return
        for _ in range(_ATTEMPTS):
            with suppress(OSError), self._border():  # another worker makes the same folder just now
                self._fs.makedirs(parent, exist_ok=True)
                return

    def _rename(self, temporary: str, full: str) -> None:
        if temporary != full:
            self._fs.mv(temporary, full)


def _nanoseconds(when: object) -> int | None:
    """Return a time as nanoseconds since 1970; a time without a zone is UTC."""
    if isinstance(when, str):
        when = _parsed(when)
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if isinstance(when, (int, float)) and not isinstance(when, bool):
        return int(when * 1e9)
    return None


def _parsed(when: str) -> datetime | None:
    try:
        if re.fullmatch(r"[0-9]{14}(\.[0-9]+)?", when):  # FTP's, RFC 3659 section 2.3
            return datetime.strptime(when[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        return datetime.fromisoformat(when)
    except ValueError:
        return None
