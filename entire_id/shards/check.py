"""One shard of a packed data set: is it what the manifest and its meta file say? Runs in any process."""

from __future__ import annotations

import os
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from entire_id.images import ImageSize, decoding_error, image_size
from entire_id.schema import arrow_schema, meta_columns, shard_columns
from entire_id.shards import parquet, tar
from entire_id.shards.manifest import FileEntry, Shard, file_digest
from entire_id.shards.plan import Hashes, hash_keys
from entire_id.shards.write import CLOCK_STEP_NS

__all__ = [
    "Checked",
    "Finding",
    "Kind",
    "Problem",
    "ShardCheck",
    "check_file",
    "check_shard",
    "read_labels",
    "read_meta",
    "row_hashes",
]

ReadCrops = Callable[[Path], Iterator[tuple[list[bytes], list[str], pa.Table]]]
_READERS: dict[str, ReadCrops] = {"parquet": parquet.read_crops, "webdataset": tar.read_crops}


class Kind(StrEnum):
    """What can be wrong."""

    MANIFEST = "manifest"  # manifest.json is unreadable, or names a path outside the folder
    MISSING = "missing"  # the manifest lists the file, it is not there
    UNLISTED = "unlisted"  # the file is there, the manifest does not list it
    SIZE = "size"  # it has another size
    SHA256 = "sha256"  # it has other bytes
    UNREADABLE = "unreadable"  # no reader can open it
    SCHEMA = "schema"  # its columns are not those of the format
    ROWS = "rows"  # it has another number of rows, or another order
    IMAGE = "image"  # an image's bytes are not those of its checksum
    OFFSET = "offset"  # meta does not point at the image's bytes
    META = "meta"  # meta and shard disagree on a label
    PLACE = "place"  # a row lies in a shard of another split or continent, or a person in two shards
    KEY = "key"  # two rows have one key
    LEAK = "leak"  # one image is in both train and test
    README = "readme"  # README.md was not made from this manifest; plain `datasets` may serve other rows


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: its kind, where (a path relative to the folder, or a key), and what was found."""

    kind: Kind
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in a shard, and the stamps by which a later run tells that it still holds.

    Attributes:
        stamps: size, mtime, ctime (ns) and inode of the shard and of its meta file.
        problems: what is wrong.
    """

    stamps: tuple[tuple[int, ...], ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """All that a process must know to check one shard.

    Attributes:
        folder: the data set.
        shard: what the manifest says of the shard.
        files: its data and its meta file.
        format: `parquet` or `webdataset`.
        quick: compare sizes and digests, but do not look into the shard.
        decode: decode every image, too.
        earlier: what another run found there.
    """

    folder: Path
    shard: Shard
    files: tuple[FileEntry, FileEntry]
    format: str
    quick: bool
    decode: bool
    earlier: Finding | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A shard that was checked, and of its n rows what comparing them with those of other shards takes.

    Attributes:
        shard: what the manifest says of the shard.
        problems: what is wrong with it alone.
        stamps: those of its files while they were checked; None if a later run must not rely on them.
        keys: (n,) `row_hashes` of the keys.
        images: (n,) `row_hashes` of the images' checksums.
        views: (v,) int64, every identity and camera that occur together, once: pid · 2³² + camid.
        num_views: (v,) rows of each.
        resumed: an earlier run had checked it.
    """

    shard: Shard
    problems: tuple[Problem, ...]
    stamps: tuple[tuple[int, ...], ...] | None
    keys: Hashes
    images: Hashes
    views: npt.NDArray[np.int64]
    num_views: npt.NDArray[np.int64]
    resumed: bool = False


def check_shard(task: ShardCheck) -> Checked:
    """Return what is wrong with a shard and its meta file; it is not looked into if an earlier finding still holds."""
    started_ns, stamps = time.time_ns(), _stamps(task)
    earlier = task.earlier if task.earlier and task.earlier.stamps == stamps else None
    meta = read_meta(task.folder / task.shard.meta_path)
    problems = earlier.problems if earlier else tuple(_find_problems(task, meta))
    is_settled = stamps is not None and _newest_ns(stamps) < started_ns - CLOCK_STEP_NS and stamps == _stamps(task)
    rows = meta if meta is not None and (task.folder / task.shard.path).is_file() else _NO_ROWS
    views, num_views = np.unique(_views(rows), return_counts=True)
    return Checked(
        shard=task.shard,
        problems=problems,
        stamps=stamps if is_settled else None,
        keys=row_hashes(rows["key"]),
        images=row_hashes(rows["xxh3"]),
        views=views,
        num_views=num_views,
        resumed=earlier is not None,
    )


_NO_ROWS = arrow_schema(meta_columns()).empty_table()


def row_hashes(column: pa.ChunkedArray) -> Hashes:
    """Return 64 bits for each text, (n,): equal texts have equal bits, others hardly ever do."""
    return hash_keys(column.to_pylist(), 0)


def _views(rows: pa.Table) -> npt.NDArray[np.int64]:
    pid, camid = (rows[name].to_numpy().astype(np.int64) for name in ("pid", "camid"))
    views: npt.NDArray[np.int64] = pid << 32 | camid & 0xFFFFFFFF
    return views


def _stamps(task: ShardCheck) -> tuple[tuple[int, ...], ...] | None:
    """Return what tells whether the files have changed; None if one is no ordinary file."""
    try:
        found = [os.lstat(task.folder / entry.path) for entry in task.files]
    except OSError:
        return None
    if not all(stat.S_ISREG(status.st_mode) for status in found):
        return None
    return tuple((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) for status in found)


def _newest_ns(stamps: tuple[tuple[int, ...], ...]) -> int:
    return max(max(mtime_ns, ctime_ns) for _, mtime_ns, ctime_ns, _ in stamps)


def _find_problems(task: ShardCheck, meta: pa.Table | None) -> Iterator[Problem]:
    for entry in task.files:
        yield from check_file(task.folder, entry)
    if not task.quick:
        yield from _check_rows(task, meta)


def check_file(folder: Path, entry: FileEntry) -> Iterator[Problem]:
    """Compare a file's size and digest with those of the manifest."""
    path = folder / entry.path
    try:
        if path.is_symlink() or not path.is_file():
            yield Problem(Kind.MISSING, entry.path, "listed, but no file is there")
        elif (size := path.stat().st_size) != entry.bytes:
            yield Problem(Kind.SIZE, entry.path, f"{size:,} bytes, expected {entry.bytes:,}")
        elif (digest := file_digest(path)) != entry.sha256:
            yield Problem(Kind.SHA256, entry.path, f"{digest[:12]}…, expected {entry.sha256[:12]}…")
    except OSError as error:
        yield Problem(Kind.UNREADABLE, entry.path, error.strerror or str(error))


def read_meta(path: Path) -> pa.Table | None:
    """Return a meta file; None if it is not there, damaged, of other columns, or with nulls."""
    try:
        meta = pq.read_table(path, partitioning=None)
        meta.validate(full=True)
    except (OSError, pa.ArrowException):
        return None
    is_ours = meta.schema.equals(arrow_schema(meta_columns())) and not any(column.null_count for column in meta.columns)
    return meta if is_ours else None


def _check_rows(task: ShardCheck, meta: pa.Table | None) -> Iterator[Problem]:
    """Compare a shard with its meta file, row by row. A missing file was reported already."""
    shard = task.shard
    path, meta_path = task.folder / shard.path, task.folder / shard.meta_path
    if not path.is_file() or not meta_path.is_file():
        return
    if meta is None:
        yield Problem(Kind.SCHEMA, shard.meta_path, "unreadable, of other columns, or with nulls")
        return
    if len(meta) != shard.rows:
        yield Problem(Kind.ROWS, shard.meta_path, f"{len(meta)} rows, the manifest says {shard.rows}")
    if task.format == "parquet":
        try:
            if not pq.read_schema(path).equals(arrow_schema(shard_columns())):
                yield Problem(Kind.SCHEMA, shard.path, "its columns are not those of the format")
                return
        except (OSError, pa.ArrowException) as error:
            yield Problem(Kind.UNREADABLE, shard.path, str(error))
            return
    yield from _check_labels(shard, meta)
    yield from _check_images(task, meta)


def _check_labels(shard: Shard, meta: pa.Table) -> Iterator[Problem]:
    wrong = {
        "split": pc.invert(pc.starts_with(meta["key"], f"{shard.split}/")),
        "continent": pc.not_equal(meta["continent"], shard.continent),
        "shard": pc.not_equal(meta["shard"], shard.path),
    }
    for name, mask in wrong.items():
        for key in meta.filter(mask)["key"].to_pylist():
            yield Problem(Kind.PLACE, key, f"its {name} is not that of {shard.path}")
    pids = tuple(sorted(pid for pid in meta["pid"].unique().to_pylist() if pid >= 0))
    if pids != shard.pids:
        yield Problem(Kind.PLACE, shard.meta_path, "its people are not those that the manifest assigns to it")


def _check_images(task: ShardCheck, meta: pa.Table) -> Iterator[Problem]:
    shard, path = task.shard, task.folder / task.shard.path
    row = image_bytes = 0
    group_rows = []
    try:
        with path.open("rb") as file:
            for images, names, labels in _READERS[task.format](path):
                part = meta.slice(row, len(images))
                yield from _compare_labels(shard, labels, part)
                yield from _compare_images(file.fileno(), images, names, part)
                if task.decode:
                    yield from _check_decoding(images, part)
                row += len(images)
                group_rows.append(len(images))
                image_bytes += sum(len(image or b"") for image in images)
    except (OSError, pa.ArrowException, tarfile.TarError, ValueError, KeyError) as error:
        yield Problem(Kind.UNREADABLE, shard.path, f"row {row}: {error}")
        return
    if row != len(meta):
        yield Problem(Kind.ROWS, shard.path, f"{row} rows, its meta file has {len(meta)}")
    if image_bytes != shard.image_bytes:
        yield Problem(Kind.ROWS, shard.path, f"{image_bytes:,} image bytes, the manifest says {shard.image_bytes:,}")
    if task.format == "parquet" and tuple(group_rows) != shard.row_groups:
        yield Problem(Kind.ROWS, shard.path, "its row groups are not those that the manifest lists")


def read_labels(path: Path, format_: str) -> pa.Table | None:
    """Return the labels of a shard in the given format, or, as `parquet`, of a meta file; None if it is damaged."""
    names = [field.name for field in arrow_schema(shard_columns()) if field.name != "image"]
    try:
        if format_ == "parquet":
            return pq.read_table(path, columns=names, partitioning=None)
        return pa.concat_tables([labels.select(names) for _, _, labels in tar.read_crops(path)])
    except (OSError, pa.ArrowException, tarfile.TarError, ValueError, KeyError):
        return None


def _compare_labels(shard: Shard, labels: pa.Table, meta: pa.Table) -> Iterator[Problem]:
    if len(labels) != len(meta):
        return  # reported once, as a number of rows
    for name in labels.column_names:
        if not labels[name].equals(meta[name]):
            different = pc.fill_null(pc.not_equal(labels[name], meta[name]), fill_value=True)
            for key in meta.filter(different)["key"].to_pylist():
                yield Problem(Kind.META, key, f"{name} differs between {shard.path} and its meta file")


def _compare_images(descriptor: int, images: list[bytes], names: list[str], meta: pa.Table) -> Iterator[Problem]:
    columns = (meta[name].to_pylist() for name in ("key", "xxh3", "width", "height", "offset", "length"))
    for image, name, key, digest, *size, offset, length in zip(images, names, *columns, strict=False):
        if image is None or not name or "/" in name:
            yield Problem(Kind.IMAGE, key, "no bytes, or no plain file name")
        elif xxhash.xxh3_64_hexdigest(image) != digest:
            yield Problem(Kind.IMAGE, key, f"its bytes are not those of checksum {digest}")
        elif image_size(image) != tuple(size):
            yield Problem(Kind.META, key, f"{size[0]} × {size[1]} px is not the size of the image")
        elif length != len(image) or offset < 0 or os.pread(descriptor, length, offset) != image:
            yield Problem(Kind.OFFSET, key, f"bytes {offset}..{offset + length} are not the image")


def _check_decoding(images: list[bytes], meta: pa.Table) -> Iterator[Problem]:
    labels = (meta[name].to_pylist() for name in ("key", "width", "height"))
    for image, key, width, height in zip(images, *labels, strict=False):
        if why := decoding_error(image or b"", ImageSize(width, height)):
            yield Problem(Kind.IMAGE, key, why)
