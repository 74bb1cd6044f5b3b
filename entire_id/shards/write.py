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
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from entire_id.errors import ManifestError, WriteFailedError
from entire_id.images import Unusable, decoding_error, image_size
from entire_id.records import Reason, Rejected, Sample, Source
from entire_id.schema import arrow_schema, meta_columns, shard_columns
from entire_id.shards import parquet, tar
from entire_id.shards.listing import samples_of
from entire_id.shards.manifest import FORMATS, FileEntry, Shard, file_digest
from entire_id.shards.parquet import ParquetShard, write_meta
from entire_id.shards.records import Crops, ShardWriter, Spans
from entire_id.shards.tar import TarShard
from entire_id.staging import sync

__all__ = ["ROW_GROUPS_KEY", "PreviousShard", "ShardDone", "ShardTask", "write_shard"]

ROW_GROUPS_KEY = b"row_groups"
"""Metadata key of a meta file: JSON list of how many rows each row group of its shard has, in order."""

UNFINISHED = ".partial"
"""What the names of files end in until they are complete."""

_NAME_READERS = {"parquet": parquet.read_names, "webdataset": tar.read_names}
_WRITERS: dict[str, Callable[[Path], ShardWriter]] = {"parquet": ParquetShard, "webdataset": TarShard}
_MAX_GROUP_BYTES = 1 << 30  # an Arrow binary array ends at 2 GiB
_WINDOW_BYTES = 16 << 20
_CLOCK_STEP_NS = 100_000_000  # file systems stamp times a little behind the clock
_LABEL_FIELDS = [field for field in arrow_schema(shard_columns()) if field.name != "image"]


# The codes of dictionary columns depend on the order in which a source lists its files; their texts do not.
_PLAIN_TYPES = dict.fromkeys(("folder", "split", "continent"), pa.string())


def _fields(table: pa.Table) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in table.schema]


@dataclass(frozen=True, slots=True)
class PreviousShard:
    """A shard of the previous version: where that lies, what is in it, and its data and meta file."""

    folder: Path
    shard: Shard
    files: tuple[FileEntry, FileEntry]


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that a process must know to write one shard.

    Attributes:
        source: where the crops are.
        rows: (n rows) `Listing.table`, in the order in which they are written.
        group_stops: where each row group stops in `rows`, exclusive.
        stem: `<split>/<continent>-<number>`.
        format: `parquet` or `webdataset`.
        decode: decode every image, and reject what does not decode.
        tree: folder in which the data set is made.
        notes: folder that remembers finished shards.
        previous: the previous version's shard of that name, which is kept if nothing changed.
    """

    source: Source
    rows: pa.Table
    group_stops: tuple[int, ...]
    stem: str
    format: str
    decode: bool
    tree: Path
    notes: Path
    previous: PreviousShard | None = None

    @property
    def path(self) -> str:
        """The shard, relative to the data set's folder."""
        return f"data/{self.stem}{FORMATS[self.format]}"

    @property
    def meta_path(self) -> str:
        """Its meta file."""
        return f"meta/{self.stem}.parquet"

    def temporary(self, path: str) -> Path:
        """Where a file of the shard is written until it is complete."""
        return self.tree / f"{path.replace('/', '-')}.{os.getpid()}{UNFINISHED}"

    def digest(self) -> str:
        """Return a digest of everything that the shard's bytes depend on but the images."""
        facts = (self.path, self.group_stops, self.decode, version("entire-id"), pa.__version__, self.previous)
        rows = self.rows.cast(pa.schema([(name, _PLAIN_TYPES.get(name, kind)) for name, kind in _fields(self.rows)]))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows.combine_chunks())
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
    digest, started_ns, stamps = task.digest(), time.time_ns(), _stamps(task)
    done = _recall(task, digest, stamps)
    if done is not None:
        return replace(done, resumed=True)
    try:
        done = _keep(task) or _write(task)
        if stamps and stamps.newest_ns < started_ns - _CLOCK_STEP_NS:
            _remember(task, digest, stamps, done)
    except OSError as error:
        raise WriteFailedError(task.tree / task.path, error.strerror or str(error)) from error
    return done


# --- what earlier runs did --------------------------------------------------------------------------------------------


def _note(task: ShardTask) -> Path:
    return task.notes / f"{task.stem.replace('/', '-')}.json"


class _Stamps(NamedTuple):
    """What tells whether the crops of a shard have changed: when the newest did, and a digest of all."""

    newest_ns: int
    digest: str


def _stamps(task: ShardTask) -> _Stamps | None:
    """Return the stamps of a shard's crops before they are read; None if one is gone."""
    try:
        folders, names = (task.rows[name].to_pylist() for name in ("folder", "name"))
        stamps = [task.source.stamp(folder + name) for folder, name in zip(folders, names, strict=True)]
    except OSError:
        return None
    return _Stamps(max(stamp[0] for stamp in stamps), hashlib.sha256(repr(stamps).encode()).hexdigest())


def _remember(task: ShardTask, digest: str, stamps: _Stamps, done: ShardDone) -> None:
    """Write down that the shard is done; from here on it is a fact on disk."""
    note = _note(task)
    text = json.dumps({"digest": digest, "stamps": stamps.digest, "done": asdict(done)})
    partial = note.with_name(f"{note.name}.{os.getpid()}{UNFINISHED}")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(note)


def _recall(task: ShardTask, digest: str, stamps: _Stamps | None) -> ShardDone | None:
    """Return the shard if an earlier run finished it and nothing it depends on has changed since."""
    try:
        note = json.loads(_note(task).read_bytes())
        done = _done_from_json(note["done"])
        files_stand = all((task.tree / file.path).stat().st_size == file.bytes for file in done.files)
        is_same = stamps is not None and (note["digest"], note["stamps"]) == (digest, stamps.digest)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return done if files_stand and is_same else None


def _done_from_json(fields: dict[str, Any]) -> ShardDone:
    shard = fields["shard"] and Shard(**{**fields["shard"], "pids": tuple(fields["shard"]["pids"])})
    rejected = tuple(Rejected(row["path"], Reason(row["reason"]), row["detail"]) for row in fields["rejected"])
    return ShardDone(shard, tuple(FileEntry(**entry) for entry in fields["files"]), rejected, fields["kept"])


def _keep(task: ShardTask) -> ShardDone | None:
    """Return the previous version's shard, linked here, if it holds just the crops that are to be written."""
    if task.previous is None:
        return None
    try:
        return _keep_if_same(task, task.previous)
    except (OSError, pa.ArrowException):  # it is damaged: the shard is written anew
        return None


def _keep_if_same(task: ShardTask, previous: PreviousShard) -> ShardDone | None:
    paths = [previous.folder / entry.path for entry in previous.files]
    if [file_digest(path) for path in paths] != [entry.sha256 for entry in previous.files]:
        return None
    meta = pq.read_table(paths[1], columns=list(_KEPT_LABELS), partitioning=None)
    old = zip(_NAME_READERS[task.format](paths[0]), *(meta[name].to_pylist() for name in _KEPT_LABELS), strict=True)
    rejected: list[Rejected] = []
    images = (image for rows in _groups(task) for image in _read_images(rows, task, rejected))
    if not all(_kept_labels(image) == row for image, row in zip_longest(images, old)):
        return None
    for entry, path in zip(previous.files, paths, strict=True):
        temporary = task.temporary(entry.path)
        try:
            os.link(path, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, temporary)
        _place(task, entry.path)
    return ShardDone(previous.shard, previous.files, tuple(rejected), kept=True)


_KEPT_LABELS = ("key", "pid", "camid", "continent", "seq", "frame", "xxh3")


def _file_name(sample: Sample) -> str:
    return sample.name.rpartition("/")[2]


def _kept_labels(image: _Image | None) -> tuple[object, ...] | None:
    if image is None:
        return None
    sample = image.sample
    return (
        _file_name(sample),
        sample.key,
        sample.pid,
        sample.camid,
        sample.continent,
        sample.seq,
        sample.frame,
        image.xxh3,
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(task: ShardTask) -> ShardDone:
    temporary = task.temporary(task.path)
    writer = _WRITERS[task.format](temporary)
    labels, group_rows, num_bytes = [], [], 0
    rejected: list[Rejected] = []
    try:
        for rows in _groups(task):
            for crops in _split_huge(_read_images(rows, task, rejected)):
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
    meta = _meta_table(pa.concat_tables(labels), task.path, spans, group_rows)
    meta_temporary = task.temporary(task.meta_path)
    try:
        sha256 = _check_written(temporary, spans, meta["xxh3"].to_pylist())
        write_meta(meta_temporary, meta)
        meta_sha256 = file_digest(meta_temporary)
    except BaseException:
        for path in (temporary, meta_temporary):  # a full disk must not stay full
            path.unlink(missing_ok=True)
        raise
    files = tuple(
        FileEntry(path, len(meta), _place(task, path), digest)
        for path, digest in ((task.path, sha256), (task.meta_path, meta_sha256))
    )
    return ShardDone(_describe(task, meta, num_bytes), files, tuple(rejected))


def _place(task: ShardTask, path: str) -> int:
    """Flush a complete file, give it its name and return its size in bytes."""
    final = task.tree / path
    sync(task.temporary(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    task.temporary(path).replace(final)
    return final.stat().st_size


def _describe(task: ShardTask, meta: pa.Table, num_bytes: int) -> Shard:
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
        pids=tuple(sorted(pid for pid in meta["pid"].unique().to_pylist() if pid >= 0)),
    )


class _Image(NamedTuple):
    """One crop that was read."""

    sample: Sample
    data: bytes
    width: int
    height: int
    xxh3: str


def _groups(task: ShardTask) -> Iterator[pa.Table]:
    start = 0
    for stop in task.group_stops:
        yield task.rows.slice(start, stop - start)
        start = stop


def _read_images(rows: pa.Table, task: ShardTask, rejected: list[Rejected]) -> Iterator[_Image]:
    """Yield the usable images of `rows`; the others go to `rejected`."""
    for sample in samples_of(rows):
        image = _read_image(sample, task.source, decode=task.decode)
        if isinstance(image, Rejected):
            rejected.append(image)
        else:
            yield image


def _read_image(sample: Sample, source: Source, *, decode: bool) -> _Image | Rejected:
    try:
        data = source.read(sample.path)
    except OSError as error:
        reason = Reason.TOO_LARGE if error.errno == errno.EFBIG else Reason.UNREADABLE
        return Rejected(sample.path, reason, error.strerror or str(error))
    size = image_size(data)
    if isinstance(size, Unusable):
        return Rejected(sample.path, size.reason, size.detail)
    if decode and (why := decoding_error(data, size)):
        return Rejected(sample.path, Reason.CORRUPT, why)
    return _Image(sample, data, size.width, size.height, xxhash.xxh3_64_hexdigest(data))


def _split_huge(images: Iterator[_Image]) -> Iterator[Crops]:
    """Yield the images of a row group at once, or in parts where they are too many bytes for one Arrow array."""
    part: list[_Image] = []
    num_bytes = 0
    for image in images:
        if num_bytes + len(image.data) > _MAX_GROUP_BYTES:
            yield _crops(part)
            part, num_bytes = [], 0
        part.append(image)
        num_bytes += len(image.data)
    if part:
        yield _crops(part)


def _crops(images: list[_Image]) -> Crops:
    samples, data, widths, heights, digests = zip(*images, strict=True)
    _, _, _, pids, camids, seqs, frames, continents = zip(*samples, strict=True)
    columns: dict[str, Any] = {
        "key": [sample.key for sample in samples],
        "pid": pids,
        "camid": camids,
        "continent": continents,
        "seq": seqs,
        "frame": frames,
        "width": widths,
        "height": heights,
        "xxh3": digests,
    }
    arrays = [pa.array(columns[field.name], field.type) for field in _LABEL_FIELDS]
    labels = pa.Table.from_arrays(arrays, schema=pa.schema(_LABEL_FIELDS))
    return Crops(list(data), [_file_name(sample) for sample in samples], labels)


def _meta_table(labels: pa.Table, path: str, spans: Spans, group_rows: list[int]) -> pa.Table:
    columns = [*labels.columns, pa.array([path] * len(labels)), pa.array(spans.offset), pa.array(spans.length)]
    schema = arrow_schema(meta_columns()).with_metadata({ROW_GROUPS_KEY: json.dumps(group_rows).encode()})
    return pa.Table.from_arrays(columns, schema=schema)


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
