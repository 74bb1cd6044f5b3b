"""One shard: read its crops, write it, check what was written, remember that it is done. Runs in any process."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from entire_id.errors import EntireIdError, ManifestError, WriteFailedError
from entire_id.images import Unusable, decoding_error, image_size
from entire_id.records import Reason, Rejected, Source, sample_key
from entire_id.remote import UNFINISHED
from entire_id.schema import arrow_schema, meta_columns, shard_columns
from entire_id.shards import parquet, tar
from entire_id.shards.manifest import FORMATS, FileEntry, Shard, check_digest, file_digest
from entire_id.shards.parquet import ParquetShard, write_meta
from entire_id.shards.records import Crops, ShardWriter, Spans
from entire_id.shards.store import Store
from entire_id.shards.tar import TarShard
from entire_id.shards.tombstones import Tombstones

__all__ = [
    "CLOCK_STEP_NS",
    "KeepTask",
    "PreviousShard",
    "ShardDone",
    "ShardTask",
    "Stamps",
    "keep_shard",
    "known_stamps",
    "write_shard",
]

_NAME_READERS = {"parquet": parquet.read_names, "webdataset": tar.read_names}
_WRITERS: dict[str, Callable[[Path], ShardWriter]] = {"parquet": ParquetShard, "webdataset": TarShard}
_MAX_GROUP_BYTES = 1 << 30  # an Arrow binary array ends at 2 GiB
_WINDOW_BYTES = 16 << 20
CLOCK_STEP_NS = 100_000_000  # file systems stamp times a little behind the clock
_LABEL_FIELDS = [field for field in arrow_schema(shard_columns()) if field.name != "image"]
_LABEL_SCHEMA = pa.schema(_LABEL_FIELDS)
_LABELS = [field.name for field in _LABEL_FIELDS]


@dataclass(frozen=True, slots=True)
class PreviousShard:
    """A shard of the previous version: where that lies, what is in it, and its data and meta file."""

    folder: Path
    shard: Shard
    files: tuple[FileEntry, FileEntry]


class Stamps(NamedTuple):
    """What tells whether the crops of a shard have changed: when the newest did, and a digest of all."""

    newest_ns: int
    digest: str


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that a process must know to write one shard.

    Attributes:
        source: where the crops are.
        rows: (n rows) the fields of `Sample`, in the order in which they are written.
        group_stops: where each row group stops in `rows`, exclusive.
        stem: `<split>/<continent>-<number>`.
        format: `parquet` or `webdataset`.
        decode: decode every image, and reject what does not decode.
        store: where the data set is made.
        previous: the previous version's shard of that name, which is kept if nothing changed.
        stamps: those of its crops, where they are known beforehand.
        erased: what must not be packed again.
    """

    source: Source
    rows: pa.Table
    group_stops: tuple[int, ...]
    stem: str
    format: str
    decode: bool
    store: Store
    previous: PreviousShard | None = None
    stamps: Stamps | None = None
    erased: Tombstones | None = None

    @property
    def path(self) -> str:
        """The shard, relative to the data set's folder."""
        return f"data/{self.stem}{FORMATS[self.format]}"

    @property
    def meta_path(self) -> str:
        """Its meta file."""
        return f"meta/{self.stem}.parquet"

    def digest(self) -> str:
        """Return a digest of everything that the shard's bytes depend on but the images."""
        erased = self.erased.digest if self.erased else ""
        made_by = version("entire-id"), pa.__version__
        facts = (self.path, self.group_stops, self.decode, *made_by, self.previous, erased)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as stream:
            stream.write_table(self.rows.combine_chunks())
        return hashlib.sha256(repr(facts).encode() + sink.getvalue()).hexdigest()


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A finished shard.

    Attributes:
        shard: what is in it; None if every crop was rejected.
        files: the shard and its meta file; none if every crop was rejected.
        rejected: crops left out.
        kept: the previous version's files were kept as they are.
        resumed: an earlier run had written it.
    """

    shard: Shard | None
    files: tuple[FileEntry, ...]
    rejected: tuple[Rejected, ...]
    kept: bool = False
    resumed: bool = False


def write_shard(task: ShardTask) -> ShardDone:
    """Return the finished shard: remembered from an earlier run, kept from the previous version, or written now.

    Raises:
        SourceChangedError: a file changed or vanished while it was read.
        WriteFailedError: the disk is full, or refuses.
        ManifestError: what was written reads back differently.
    """
    digest = task.digest()
    done = _recall(task, digest)
    if done is not None:
        return replace(done, resumed=True)
    started_ns = time.time_ns()
    try:
        with task.store.scratch() as scratch:
            seen = _SeenStamps()
            done = _keep(task, scratch, seen)
            if done is None:
                seen = _SeenStamps()  # the crops are read anew
                done = _write(task, scratch, seen)
        stamps = task.stamps or seen.close()
        if stamps.newest_ns < started_ns - CLOCK_STEP_NS:
            _remember(task, digest, stamps, done)
    except OSError as error:
        if isinstance(error, EntireIdError):
            raise
        raise WriteFailedError(f"{task.store.name}/{task.path}", error.strerror or str(error)) from error
    return done


def _temporary(scratch: Path, path: str) -> Path:
    """Where a file is written until it is complete; machines that share a folder may share numbers of processes."""
    return scratch / f"{path.replace('/', '-')}.{os.uname().nodename}-{os.getpid()}{UNFINISHED}"


# --- what earlier runs did --------------------------------------------------------------------------------------------


def _note(task: ShardTask) -> str:
    return f"{task.stem.replace('/', '-')}.json"


class _SeenStamps:
    """The stamps of a shard's crops, group by group, as they are read."""

    def __init__(self) -> None:
        self._newest_ns = 0
        self._state = hashlib.sha256()

    def add(self, stamps: list[tuple[int, ...]]) -> None:
        """Note the stamps of the next row group's crops."""
        self._newest_ns = max(self._newest_ns, *(stamp[0] for stamp in stamps if stamp), 0)
        self._state.update(repr(stamps).encode())

    def close(self) -> Stamps:
        """Return what was noted."""
        return Stamps(self._newest_ns, self._state.hexdigest())


def known_stamps(task: ShardTask) -> Stamps | None:
    """Return the stamps of a shard's crops as they are now, without reading the crops; None if one is gone."""
    seen = _SeenStamps()
    try:
        for rows in _groups(task):
            seen.add([task.source.stamp(path) for path in _paths(rows)])
    except OSError:
        return None
    return seen.close()


def _remember(task: ShardTask, digest: str, stamps: Stamps, done: ShardDone) -> None:
    """Write down that the shard is done; from here on it is a fact on disk."""
    text = json.dumps({"digest": digest, "stamps": stamps.digest, "done": asdict(done)})
    task.store.write_note(_note(task), text)


def _recall(task: ShardTask, digest: str) -> ShardDone | None:
    """Return the shard if an earlier run finished it and nothing it depends on has changed since."""
    try:
        note = json.loads(task.store.read_note(_note(task)))
        done = _done_from_json(note["done"])
        files_stand = all(task.store.size(file.path) == file.bytes for file in done.files)
        stamps = task.stamps or known_stamps(task)
        is_same = stamps is not None and (note["digest"], note["stamps"]) == (digest, stamps.digest)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return done if files_stand and is_same else None


def _done_from_json(fields: dict[str, Any]) -> ShardDone:
    shard = fields["shard"] and Shard.from_json(fields["shard"])
    rejected = tuple(Rejected(row["path"], Reason(row["reason"]), row["detail"]) for row in fields["rejected"])
    return ShardDone(shard, tuple(FileEntry(**entry) for entry in fields["files"]), rejected, fields["kept"])


def _keep(task: ShardTask, scratch: Path, seen: _SeenStamps) -> ShardDone | None:
    """Return the previous version's shard, linked here, if it holds just the crops that are to be written."""
    if task.previous is None:
        return None
    try:
        return _keep_if_same(task, task.previous, scratch, seen)
    except (OSError, pa.ArrowException):  # it is damaged: the shard is written anew
        return None


def _keep_if_same(task: ShardTask, previous: PreviousShard, scratch: Path, seen: _SeenStamps) -> ShardDone | None:
    paths = [previous.folder / entry.path for entry in previous.files]
    if [file_digest(path) for path in paths] != [entry.sha256 for entry in previous.files]:
        return None
    labels = pq.read_table(paths[1], columns=_LABELS, partitioning=None)
    names = _NAME_READERS[task.format](paths[0])
    rejected: list[Rejected] = []
    start = 0
    for crops in _read_crops(task, rejected, seen):
        stop = start + len(crops)
        if not (crops.names == names[start:stop] and crops.labels.equals(labels[start:stop])):
            return None
        start = stop
    if start != len(names):
        return None
    _link(previous, task.store, scratch)
    return ShardDone(previous.shard, previous.files, tuple(rejected), kept=True)


def _link(previous: PreviousShard, store: Store, scratch: Path) -> None:
    for entry in previous.files:
        temporary = _temporary(scratch, entry.path)
        try:
            os.link(previous.folder / entry.path, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(previous.folder / entry.path, temporary)
        store.place(temporary, entry.path)


@dataclass(frozen=True, slots=True)
class KeepTask:
    """A shard of the previous version that stays as it is, and where the new one is made."""

    previous: PreviousShard
    store: Store


def keep_shard(task: KeepTask) -> ShardDone:
    """Link the previous version's shard, if it still is what its manifest says, and return it.

    Raises:
        ManifestError: it is not.
        WriteFailedError: the disk is full, or refuses.
    """
    folder = task.previous.folder
    try:
        for entry in task.previous.files:
            check_digest(folder, entry)
        with task.store.scratch() as scratch:
            _link(task.previous, task.store, scratch)
    except OSError as error:
        if isinstance(error, EntireIdError):
            raise
        path = f"{task.store.name}/{task.previous.shard.path}"
        raise WriteFailedError(path, error.strerror or str(error)) from error
    return ShardDone(task.previous.shard, task.previous.files, (), kept=True)


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(task: ShardTask, scratch: Path, seen: _SeenStamps) -> ShardDone:
    temporary = _temporary(scratch, task.path)
    writer = _WRITERS[task.format](temporary)
    labels, group_rows, num_bytes = [], [], 0
    rejected: list[Rejected] = []
    try:
        for crops in _read_crops(task, rejected, seen):
            writer.write(crops)
            labels.append(crops.labels)
            group_rows.append(len(crops))
            num_bytes += crops.num_bytes
        spans = writer.close()
    except BaseException:
        with suppress(OSError):  # the disk may be full
            writer.abandon()
        temporary.unlink(missing_ok=True)
        raise
    if not labels:
        temporary.unlink()
        return ShardDone(None, (), tuple(rejected))
    meta = _meta_table(pa.concat_tables(labels), task.path, spans)
    meta_temporary = _temporary(scratch, task.meta_path)
    try:
        sha256 = _check_written(temporary, spans, meta["xxh3"].to_pylist())
        write_meta(meta_temporary, meta)
        meta_sha256 = file_digest(meta_temporary)
    except BaseException:
        for path in (temporary, meta_temporary):  # a full disk must not stay full
            path.unlink(missing_ok=True)
        raise
    files = tuple(
        FileEntry(path, len(meta), task.store.place(written, path), digest)
        for written, path, digest in ((temporary, task.path, sha256), (meta_temporary, task.meta_path, meta_sha256))
    )
    return ShardDone(_describe(task, meta, group_rows, num_bytes), files, tuple(rejected))


def _describe(task: ShardTask, meta: pa.Table, group_rows: list[int], num_bytes: int) -> Shard:
    split, _, name = task.stem.partition("/")
    return Shard(
        split=split,
        continent=name.rpartition("-")[0],
        path=task.path,
        meta_path=task.meta_path,
        rows=len(meta),
        num_bytes=num_bytes,
        meta_num_bytes=meta.nbytes,
        image_bytes=int(meta["length"].to_numpy().sum(dtype=np.int64)),
        row_groups=tuple(group_rows),
        pids=tuple(sorted(pid for pid in meta["pid"].unique().to_pylist() if pid >= 0)),
    )


class _Image(NamedTuple):
    """What is noted of a crop that was read; `row` is its place in the row group."""

    row: int
    data: bytes
    width: int
    height: int
    xxh3: str


def _groups(task: ShardTask) -> Iterator[pa.Table]:
    start = 0
    for stop in task.group_stops:
        yield task.rows.slice(start, stop - start)
        start = stop


def _paths(rows: pa.Table) -> list[str]:
    """Return where the source finds the crops; see `Sample.path`."""
    return list(map(add, rows["folder"].to_pylist(), rows["name"].to_pylist()))


def _read_crops(task: ShardTask, rejected: list[Rejected], seen: _SeenStamps) -> Iterator[Crops]:
    """Yield the usable crops of each row group; the others go to `rejected`.

    A group comes in parts where it is too many bytes for one Arrow array.
    """
    for rows in _groups(task):
        part: list[_Image] = []
        num_bytes = 0
        for image in _read_images(rows, task, rejected, seen):
            if num_bytes + len(image.data) > _MAX_GROUP_BYTES:
                yield _crops(rows, part)
                part, num_bytes = [], 0
            part.append(image)
            num_bytes += len(image.data)
        if part:
            yield _crops(rows, part)


def _read_images(rows: pa.Table, task: ShardTask, rejected: list[Rejected], seen: _SeenStamps) -> Iterator[_Image]:
    stamps = []
    for row, path in enumerate(_paths(rows)):
        try:
            data, stamp = task.source.read(path)
        except OSError as error:
            reason = Reason.TOO_LARGE if error.errno == errno.EFBIG else Reason.UNREADABLE
            rejected.append(Rejected(path, reason, error.strerror or str(error)))
            with suppress(OSError):  # gone by now: the shard will not be remembered as it is
                stamps.append(task.source.stamp(path))
            continue
        stamps.append(stamp)
        size = image_size(data)
        if isinstance(size, Unusable):
            rejected.append(Rejected(path, size.reason, size.detail))
        elif task.erased and (why := task.erased.shows(data)):
            rejected.append(Rejected(path, Reason.ERASED, why))
        elif task.decode and (why := decoding_error(data, size)):
            rejected.append(Rejected(path, Reason.CORRUPT, why))
        else:
            yield _Image(row, data, size.width, size.height, xxhash.xxh3_64_hexdigest(data))
    seen.add(stamps)


def _crops(rows: pa.Table, images: list[_Image]) -> Crops:
    kept, data, widths, heights, digests = zip(*images, strict=True)
    if len(kept) < len(rows):
        rows = rows.take(pa.array(kept))
    names = rows["name"].to_pylist()
    columns: dict[str, Any] = {
        "key": list(map(sample_key, rows["split"].to_pylist(), names)),
        "width": widths,
        "height": heights,
        "xxh3": digests,
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else rows[field.name].combine_chunks()
        for field in _LABEL_FIELDS
    ]
    file_names = [name.rpartition("/")[2] for name in names]
    return Crops(list(data), file_names, pa.Table.from_arrays(arrays, schema=_LABEL_SCHEMA))


def _meta_table(labels: pa.Table, path: str, spans: Spans) -> pa.Table:
    columns = [*labels.columns, pa.array([path] * len(labels)), pa.array(spans.offset), pa.array(spans.length)]
    return pa.Table.from_arrays(columns, schema=arrow_schema(meta_columns()))


def _check_written(path: Path, spans: Spans, digests: list[str]) -> str:
    """Read every image back where the index says it lies, and return the file's SHA-256.

    Raises:
        ManifestError: the bytes there are not those that were packed.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        state, done = hashlib.sha256(), 0
        data = memoryview(mapped)
        try:
            for offset, length, digest in zip(spans.offset.tolist(), spans.length.tolist(), digests, strict=True):
                stop = offset + length
                if xxhash.xxh3_64_hexdigest(data[offset:stop]) != digest:
                    raise ManifestError(path, f"bytes {offset}..{stop} are not the image packed there")
                if stop - done > _WINDOW_BYTES:
                    state.update(data[done:stop])
                    # Mapped pages count as this process's memory until they are given back.
                    mapped.madvise(mmap.MADV_DONTNEED, 0, stop // mmap.PAGESIZE * mmap.PAGESIZE)
                    done = stop
            state.update(data[done:])
            return state.hexdigest()
        finally:
            data.release()
