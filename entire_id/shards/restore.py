"""One broken shard: write it anew in every way that packing may have, and see whether it is the one that was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from entire_id.errors import SourceChangedError
from entire_id.records import PART_OF_SPLIT, Person
from entire_id.shards.check import read_labels
from entire_id.shards.listing import samples_of
from entire_id.shards.manifest import FileEntry, Shard
from entire_id.shards.store import LocalStore
from entire_id.shards.write import ShardDone, ShardTask, write_shard

__all__ = ["RestoreTask", "Restored", "restore_shard"]

_SHOWN = 3  # names in a sentence


@dataclass(frozen=True, slots=True)
class RestoreTask:
    """All that a process must know to restore one shard.

    Attributes:
        shard: what the manifest says of it.
        files: its data and its meta file, as they must be.
        broken: files of the data set that are not what they must be.
        folder: the data set.
        attempts: ways to write it, each into a folder of its own; the likeliest first.
    """

    shard: Shard
    files: tuple[FileEntry, FileEntry]
    broken: frozenset[str]
    folder: Path
    attempts: tuple[ShardTask, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a broken shard.

    Attributes:
        found: broken file → where it lies anew, complete and on the disk.
        why: why the others were not found.
    """

    found: dict[str, Path]
    why: str


def restore_shard(task: RestoreTask) -> Restored:
    """Return the broken files of a shard that came out, byte for byte, as the manifest has them."""
    wanted = {entry.path: entry.sha256 for entry in task.files if entry.path in task.broken}
    found: dict[str, Path] = {}
    why = "" if task.attempts else "none of its crops is in the source"
    try:
        for tree, attempt in _with_decoding(task):
            done = write_shard(attempt)
            matching = {entry.path for entry in done.files if wanted.get(entry.path) == entry.sha256}
            if matching | found.keys() != wanted.keys() and not why:
                why = _explain(task, attempt, done, tree)
            for entry in done.files:
                if entry.path in matching - found.keys():
                    found[entry.path] = tree / entry.path
                else:
                    (tree / entry.path).unlink()
            if found.keys() == wanted.keys():
                break
    except SourceChangedError as error:
        why = str(error)
    return Restored(found, why)


def _with_decoding(task: RestoreTask) -> Iterator[tuple[Path, ShardTask]]:
    """Yield the attempts, each with its folder: packing may have decoded the images, and rejected some."""
    for attempt in task.attempts:
        for decode in (False, True) if len(attempt.rows) > task.shard.rows else (False,):
            tree = Path(attempt.store.name) / ("decoded" if decode else "plain")
            tree.mkdir(parents=True, exist_ok=True)
            yield tree, replace(attempt, decode=decode, store=LocalStore(tree, tree))


# --- why not ----------------------------------------------------------------------------------------------------------


def _explain(task: RestoreTask, attempt: ShardTask, done: ShardDone, tree: Path) -> str:
    """Return what is other than it was when the data set was packed, as far as the sound files tell."""
    written = (_rows_by_key(tree / attempt.meta_path, "parquet") if done.shard else None) or {}
    known = _known_rows(task)
    if known is None:
        return _explain_by_numbers(task.shard, done)
    paths = {sample.key: sample.path for sample in samples_of(attempt.rows)}
    reasons = {rejected.path: rejected.reason for rejected in done.rejected}
    gone = [_lost_name(key, paths, reasons) for key in known if key not in written]
    changed = [repr(paths[key]) for key, row in known.items() if key in written and written[key] != row]
    new = [repr(paths[key]) for key in written if key not in known]
    told = [
        _tell(gone, "the source lacks"),
        _tell(changed, "the source has other bytes or labels for"),
        _tell(new, "the source has, and the data set has not,"),
    ]
    return "; ".join(filter(None, told)) or _other_writer()


def _lost_name(key: str, paths: dict[str, str], reasons: dict[str, Any]) -> str:
    path = paths.get(key)
    return repr(key) if path is None else f"{path!r} (rejected: {reasons.get(path, 'unreadable')})"


def _tell(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{what} {len(names):,} of its crops: {', '.join(names[:_SHOWN])}{more}"


def _explain_by_numbers(shard: Shard, done: ShardDone) -> str:
    pids, rows = (done.shard.pids, done.shard.rows) if done.shard else ((), 0)
    gone = [str(Person(PART_OF_SPLIT[shard.split], pid)) for pid in sorted({*shard.pids} - {*pids})]
    if gone:
        more = f" and {len(gone) - _SHOWN:,} more" if len(gone) > _SHOWN else ""
        return f"the source lacks people of this shard: {', '.join(gone[:_SHOWN])}{more}"
    if rows != shard.rows:
        return f"the source gives {rows:,} crops for it and it held {shard.rows:,}; no sound file is left to tell which"
    return f"a crop has changed in the source, and no sound file is left to tell which; or {_other_writer()}"


def _other_writer() -> str:
    return f"it was written by another version than entire-id {version('entire-id')} with pyarrow {pa.__version__}"


def _known_rows(task: RestoreTask) -> dict[str, tuple[object, ...]] | None:
    """Return what was packed, from the meta file or else the data file; None if neither is sound."""
    for path in (task.shard.meta_path, task.shard.path):
        if path not in task.broken:
            format_ = "parquet" if path == task.shard.meta_path else task.attempts[0].format
            return _rows_by_key(task.folder / path, format_)
    return None


def _rows_by_key(path: Path, format_: str) -> dict[str, tuple[object, ...]] | None:
    labels = read_labels(path, format_)
    if labels is None:
        return None
    columns = [labels[name].to_pylist() for name in labels.column_names]
    return dict(zip(labels["key"].to_pylist(), zip(*columns, strict=True), strict=True))
