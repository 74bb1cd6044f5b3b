"""Folders that appear under their name only when they are complete."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from entire_id.errors import OutputExistsError
from entire_id.records import is_utf8

__all__ = ["alone", "append_line", "beside", "new_folder", "rewrite", "sync", "work_folder"]

_LOCK = ".lock"
_MARK = ".unfinished"  # made first and removed last: a work folder without it is somebody else's


def beside(out: Path, suffix: str) -> Path:
    """Return the path beside `out` whose name is that of `out` + `suffix`.

    >>> beside(Path("sets/entire-id"), ".partial").as_posix()
    'sets/entire-id.partial'
    """
    named = out if out.name not in {"", ".."} else out.resolve()
    return named.with_name(named.name + suffix)


@contextmanager
def new_folder(
    out: Path, replaces: Callable[[Path], bool] | None = None, keeps: tuple[type[BaseException], ...] = ()
) -> Iterator[Path]:
    """Give an empty folder that becomes `out` on a clean exit.

    It is `<out>.partial/tree`. On an error `<out>.partial` vanishes, together with the parent folders that were made
    for it, and what a killed run left there is cleared first: unless there are errors to go on after.

    Args:
        out: a folder that is empty or does not exist.
        replaces: tells whether an older `out` may be replaced; none may by default.
        keeps: errors after which the work stays for the next run to go on with; then the folder may hold something, and
            `<out>.partial/notes` is there to remember what.

    Raises:
        OutputExistsError: `out`, or `<out>.partial`, holds something else, or another run is at work there.
    """
    target = out.resolve()
    _check_target(out, target, replaces)
    work = beside(target, ".partial")
    missing = [parent for parent in work.parents if not parent.exists()]
    lock = _claim(work, out, "making")
    tree = work / "tree"
    try:
        if not keeps:
            _clear(work)
        for folder in (tree, work / "notes"):
            folder.mkdir(exist_ok=True)
        yield tree
        for name, _, _ in os.walk(tree):
            sync(Path(name))
        if replaces and target.is_dir() and any(target.iterdir()):
            _check_target(out, target, replaces)
            shutil.rmtree(target)
        tree.replace(target)
        sync(target.parent)
    except BaseException as error:
        if isinstance(error, keeps) and not isinstance(error, OutputExistsError):
            os.close(lock)
            raise
        _release(work, lock)
        for parent in missing:
            with suppress(OSError):  # somebody else uses it by now
                parent.rmdir()
        raise
    _release(work, lock)


@contextmanager
def work_folder(folder: Path, suffix: str) -> Iterator[Path]:
    """Give an empty folder beside `folder`, `<folder><suffix>/tree`, that vanishes at the end.

    What a killed run left there is cleared first.

    Args:
        folder: what the work is for.
        suffix: what the work folder's name ends in, and what another run there is said to do: `.repairing`.

    Raises:
        OutputExistsError: it holds something else, or another run is at work there.
    """
    work = beside(folder.resolve(), suffix)
    lock = _claim(work, folder, suffix.removeprefix("."))
    try:
        _clear(work)
        tree = work / "tree"
        tree.mkdir()
        yield tree
    finally:
        _release(work, lock)


def _check_target(out: Path, target: Path, replaces: Callable[[Path], bool] | None) -> None:
    if not is_utf8(str(target)):
        raise OutputExistsError(out, "its name is not UTF-8")
    if not os.path.lexists(target):
        return
    is_empty = target.is_dir() and not any(target.iterdir())
    if not is_empty and not (replaces and target.is_dir() and replaces(target)):
        raise OutputExistsError(out)


def _claim(work: Path, out: Path, doing: str) -> int:
    """Make the work folder, lock its mark and return the lock."""
    mark = work / _MARK
    is_ours = work.is_dir() and not work.is_symlink() and (mark.is_file() or not any(work.iterdir()))
    if os.path.lexists(work) and not is_ours:
        raise OutputExistsError(work, "it is needed for the work, and holds something else")
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        if os.fstat(lock).st_ino == mark.stat().st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):  # another run holds it, or has just ended and removed it
        pass
    os.close(lock)
    raise OutputExistsError(out, f"another run is {doing} it")


def _release(work: Path, lock: int) -> None:
    _clear(work)
    (work / _MARK).unlink(missing_ok=True)
    with suppress(OSError):  # somebody put something there
        work.rmdir()
    os.close(lock)


def _clear(work: Path) -> None:
    for name in ("tree", "notes"):
        shutil.rmtree(work / name, ignore_errors=True)


@contextmanager
def alone(folder: Path, refusal: Exception) -> Iterator[None]:
    """Keep other processes from working in a folder meanwhile; a process that dies lets go.

    Args:
        folder: one that is there.
        refusal: what is raised where another process is at work there.
    """
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock would stay with the workers of one that was killed
        except OSError as error:
            raise refusal from error
        yield


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, which is made if it is not there; one that was cut short gets its end first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # goes with the descriptor
        size = os.fstat(descriptor).st_size
        is_whole = not size or os.pread(descriptor, 1, size - 1) == b"\n"
        os.write(descriptor, f"{'' if is_whole else chr(10)}{line}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace a file, or make it, by what `change` gives for its bytes. Several processes may do so at once."""
    path = path.resolve()
    partial = path.with_name(f"{path.name}.partial")
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        partial.write_bytes(change(path.read_bytes() if path.exists() else b""))
        sync(partial)
        partial.replace(path)
        os.fsync(folder)
    finally:
        partial.unlink(missing_ok=True)
        os.close(folder)


def sync(path: Path) -> None:
    """Bring a file or folder to the disk, so that a rename after it never comes first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
