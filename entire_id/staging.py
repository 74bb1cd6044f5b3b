"""Folders that appear under their name only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from entire_id.errors import OutputExistsError

__all__ = ["new_folder", "sync"]

_MARK = ".unfinished"  # in every folder that is being made: only such a folder is ever cleared


@contextmanager
def new_folder(out: Path, replaces: str | None = None) -> Iterator[Path]:
    """Give an empty folder, `<out>.partial`, that becomes `out` on a clean exit.

    On an error it vanishes, together with the parent folders that were made for it. What a killed run left in
    `<out>.partial` is cleared first.

    Args:
        out: a folder that is empty or does not exist.
        replaces: name of a file whose presence marks an older `out` that may be replaced.

    Raises:
        OutputExistsError: `out`, or `<out>.partial`, holds something else.
    """
    target = out.resolve()
    _check(out, target, replaces)
    partial = target.with_name(target.name + ".partial")
    if partial.exists() and any(partial.iterdir()) and not (partial / _MARK).is_file():
        raise OutputExistsError(partial, "it is needed for the work, and holds something else")
    shutil.rmtree(partial, ignore_errors=True)
    missing = [parent for parent in partial.parents if not parent.exists()]
    partial.mkdir(parents=True)
    (partial / _MARK).touch()
    try:
        yield partial
        (partial / _MARK).unlink()
        sync(partial)
        if replaces and (target / replaces).is_file():
            shutil.rmtree(target)
        partial.replace(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # somebody else uses it by now
                parent.rmdir()
        raise


def _check(out: Path, target: Path, replaces: str | None) -> None:
    if not target.exists() or (replaces and (target / replaces).is_file()):
        return
    if not target.is_dir() or any(target.iterdir()):
        raise OutputExistsError(out)


def sync(path: Path) -> None:
    """Bring a file or folder to the disk, so that a rename after it never comes first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
