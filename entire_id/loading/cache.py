"""A folder that keeps ranges of remote files, up to a size, for several processes at once."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import xxhash

from entire_id.errors import WriteFailedError

__all__ = ["RangeCache"]

_DIGEST_BYTES = 8  # what an entry starts with: XXH3-64 of the rest
_KEEP = 0.9  # of the room, when it is full: looking for the oldest entries takes a look at all of them


class RangeCache:
    """Bytes by name. It never holds more than its size after a write, and never returns a damaged entry.

    An entry is one file, written under another name and renamed. What was read or written longest ago goes first.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Make the folder.

        Raises:
            WriteFailedError: it cannot be made.
        """
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteFailedError(folder, error.strerror or str(error)) from error

    def get(self, name: str) -> bytes | None:
        """Return the bytes of that name, None if they are not there or damaged."""
        path = self._path(name)
        try:
            stored = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        data = stored[_DIGEST_BYTES:]
        return data if xxhash.xxh3_64_digest(data) == stored[:_DIGEST_BYTES] else None

    def put(self, name: str, data: bytes) -> None:
        """Keep bytes, if there is room for them at all; a disk that is full keeps nothing more."""
        num_bytes = _DIGEST_BYTES + len(data)
        if num_bytes > self._max_bytes:
            return
        path = self._path(name)
        temporary = path.with_name(f"{path.name}.{uuid4().hex}")
        with suppress(OSError), self._locked() as note:
            self._make_room(note, num_bytes)
            try:
                path.parent.mkdir(exist_ok=True)
                temporary.write_bytes(xxhash.xxh3_64_digest(data) + data)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    def forget(self, name: str) -> None:
        """Drop the entry of that name."""
        with suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / digest[:2] / digest[2:]

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Keep other processes and threads out; the descriptor is of the file that notes how much is kept."""
        note = os.open(self._folder / "bytes", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(note, fcntl.LOCK_EX)
            yield note
        finally:
            os.close(note)

    def _make_room(self, note: int, num_bytes: int) -> None:
        """Note `num_bytes` more, before they are written: one who is killed meanwhile leaves too high a note."""
        text = os.pread(note, 32, 0)
        kept = int(text) if text.strip().isdigit() else self._max_bytes
        if kept + num_bytes > self._max_bytes:
            kept = self._evict(int(self._max_bytes * _KEEP) - num_bytes)
        os.pwrite(note, b"%-32d" % (kept + num_bytes), 0)

    def _evict(self, max_bytes: int) -> int:
        """Remove the oldest entries until at most `max_bytes` are left, and return how many are."""
        entries = []
        for folder in (entry.path for entry in os.scandir(self._folder) if entry.is_dir()):
            for entry in os.scandir(folder):
                with suppress(OSError):  # another process forgets it just now
                    found = entry.stat()
                    entries.append((found.st_mtime_ns, found.st_size, entry.path))
        kept = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if kept <= max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            kept -= size
        return kept
