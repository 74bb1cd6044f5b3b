"""What an interrupted check had found: a line a shard, in a file beside the data set."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from entire_id.shards.check import Checked, Finding, Kind, Problem
from entire_id.shards.manifest import Manifest
from entire_id.staging import beside

__all__ = ["Findings", "Mode", "remember_findings"]

_MARK = b'{"entire-id verify": '  # what our files start with; another is left alone


@dataclass(frozen=True, slots=True)
class Mode:
    """How thoroughly to check; see `verify`."""

    quick: bool = False
    decode: bool = False


class Findings:
    """What is known of shards, in memory and in a file, if there is one to go on with."""

    def __init__(self, known: dict[str, Finding], descriptor: int | None = None) -> None:
        self.known = known
        self._descriptor = descriptor

    def add(self, checked: Checked) -> None:
        """Note what was found in a shard, unless its files changed meanwhile or it is noted already."""
        path = checked.shard.path
        if checked.stamps is None:
            self.known.pop(path, None)
            return
        finding = Finding(checked.stamps, checked.problems)
        if self.known.get(path) != finding:
            self.known[path] = finding
            self._write(path, finding)

    def _write(self, path: str, finding: Finding) -> None:
        if self._descriptor is None:
            return
        problems = [(problem.kind, problem.where, problem.detail) for problem in finding.problems]
        line = json.dumps({"path": path, "stamps": finding.stamps, "problems": problems}) + "\n"
        try:
            _write_all(self._descriptor, line.encode())
        except OSError:  # the disk is full: what stands there is of use, more is not needed
            self._descriptor = None


@contextmanager
def remember_findings(folder: Path, manifest: Manifest, mode: Mode) -> Iterator[Findings]:
    """Give the findings of an interrupted run with the same manifest and mode, and keep them if this one is, too.

    They lie in `<folder>.verifying`, which is removed at the end. Nothing is kept where that cannot be written, is not
    ours, or belongs to another run that is at work.
    """
    path = beside(folder.resolve(), ".verifying") if folder.resolve().name else None
    descriptor = None if path is None else _claim(path)
    if path is None or descriptor is None:
        yield Findings({})
        return
    try:
        findings = _read(descriptor, _header(manifest, mode))
        try:
            yield findings
        except BaseException:
            if not findings.known:
                _remove(path)
            raise
        _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder became read-only: the next run takes it up
        path.unlink()


def _claim(path: Path) -> int | None:
    """Open the file for this run alone; None where that cannot be."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        start = os.pread(descriptor, len(_MARK), 0)
        if _MARK.startswith(start) and os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except OSError:  # another run holds it, or has just ended and removed it
        pass
    os.close(descriptor)
    return None


def _header(manifest: Manifest, mode: Mode) -> bytes:
    """Return the first line: a digest of all that findings depend on but the files themselves."""
    facts = repr((manifest.to_json(), mode, version("entire-id")))
    return _MARK + json.dumps(hashlib.sha256(facts.encode()).hexdigest()).encode() + b"}\n"


def _read(descriptor: int, header: bytes) -> Findings:
    """Return what the file holds, and make it ready for more lines; one for another set or mode is emptied."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        data = file.read()
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)  # the last may be torn
    is_same = lines[:1] == [header]
    stop = sum(map(len, lines)) if is_same else 0
    try:
        os.ftruncate(descriptor, stop)
        os.lseek(descriptor, stop, os.SEEK_SET)
        if not is_same:
            _write_all(descriptor, header)
    except OSError:  # the disk is full
        return Findings({})
    return Findings(dict(found for line in lines[1:] if (found := _parse(line))) if is_same else {}, descriptor)


def _parse(line: bytes) -> tuple[str, Finding] | None:
    try:
        fields = json.loads(line)
        problems = tuple(Problem(Kind(kind), where, detail) for kind, where, detail in fields["problems"])
        return fields["path"], Finding(tuple(tuple(stamp) for stamp in fields["stamps"]), problems)
    except (ValueError, KeyError, TypeError):  # a power failure may leave anything
        return None


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
