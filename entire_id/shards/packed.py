"""A packed data set as a source of crops: what is packed can be packed again, without the raw crops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import xxhash

from entire_id.errors import CorruptCropError, ManifestError
from entire_id.records import Camera, RawFile, Rejected, Sample, sample_key
from entire_id.shards import parquet, tar
from entire_id.shards.check import read_meta
from entire_id.shards.manifest import FileEntry, Shard, check_digest

__all__ = ["PackedRow", "PackedShard", "PackedSource", "read_checked_meta", "read_image", "rows_of"]

_NAME_READERS = {"parquet": parquet.read_names, "webdataset": tar.read_names}
_PARTS = 3  # of a shard's path: data, split, file


@dataclass(frozen=True, slots=True)
class PackedShard:
    """A shard as it lies there: its data set's folder and format, what is in it, and its data and meta file."""

    folder: Path
    format: str
    shard: Shard
    files: tuple[FileEntry, FileEntry]


@dataclass(frozen=True, slots=True)
class PackedSource:
    """Shards of a packed data set as raw crops; see `records.Source`.

    A crop's path is that of its shard, a slash, and the name that it had below the folder of its split.

    Attributes:
        name: where the data set lies.
        shards: path → the shards that are read.
        without: keys of crops that are left out.
        cameras: what the owner said of them.
    """

    name: str
    shards: dict[str, PackedShard]
    without: frozenset[str] = frozenset()
    cameras: tuple[Camera, ...] = ()

    def samples(self) -> Iterator[Sample | Rejected]:
        """Every crop that is not left out, shard by shard.

        Raises:
            ManifestError: a shard is not what its manifest says.
        """
        for path, packed in self.shards.items():
            check_digest(packed.folder, packed.files[0])
            meta = read_checked_meta(packed.folder, packed.shard, packed.files[1])
            columns = (meta[name].to_pylist() for name in ("key", "pid", "camid", "seq", "frame", "continent"))
            for name, key, *labels in zip(_names(packed, meta), *columns, strict=True):
                if key not in self.without:
                    yield Sample(f"{path}/", name, packed.shard.split, *labels)

    def read(self, path: str) -> RawFile:
        """One crop, checked; see `records.Source`.

        Raises:
            ManifestError: the shard is not what its manifest says.
            CorruptCropError: the image is not the one that was packed.
        """
        packed, name = self._find(path)
        row = _rows(packed)[name]
        return RawFile(read_image(packed.folder, packed.shard, row), self.stamp(path))

    def stamp(self, path: str) -> tuple[int, ...]:
        """What tells whether the shard, or its meta file, has changed; see `records.Source`."""
        packed, _ = self._find(path)
        found = [os.stat(f"{packed.folder}/{entry.path}") for entry in packed.files]  # noqa: PTH116 asked for each crop
        newest_ns = max(max(status.st_mtime_ns, status.st_ctime_ns) for status in found)
        return newest_ns, *(number for one in found for number in (one.st_mtime_ns, one.st_size, one.st_ino))

    def _find(self, path: str) -> tuple[PackedShard, str]:
        parts = path.split("/", _PARTS)
        return self.shards["/".join(parts[:_PARTS])], parts[_PARTS]


class PackedRow(NamedTuple):
    """Where an image lies in its shard, and its checksum."""

    row: int
    key: str
    offset: int
    length: int
    xxh3: str


def read_checked_meta(folder: Path, shard: Shard, entry: FileEntry) -> pa.Table:
    """Return a shard's meta file.

    Raises:
        ManifestError: it is not what the manifest says.
    """
    meta = read_meta(check_digest(folder, entry))
    if meta is None or len(meta) != shard.rows:
        raise ManifestError(folder / entry.path, "unreadable, of other columns, or of another number of rows", folder)
    return meta


def read_image(folder: Path, shard: Shard, row: PackedRow) -> bytes:
    """Return the bytes of one image.

    Raises:
        CorruptCropError: they are not those of its checksum.
    """
    with (folder / shard.path).open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), row.length, row.offset)
    if xxhash.xxh3_64_hexdigest(data) != row.xxh3:
        raise CorruptCropError(folder / shard.path, row.key, row.row, row.offset, folder)
    return data


def rows_of(meta: pa.Table) -> Iterator[PackedRow]:
    """Yield what a meta file says of each row."""
    columns = [meta[name].to_pylist() for name in ("key", "offset", "length", "xxh3")]
    for number, row in enumerate(zip(*columns, strict=True)):
        yield PackedRow(number, *row)


def _names(packed: PackedShard, meta: pa.Table) -> list[str]:
    """Return what each crop was called below the folder of its split: the key lacks the ending."""
    path = packed.folder / packed.shard.path
    names = []
    for key, file_name in zip(meta["key"].to_pylist(), _NAME_READERS[packed.format](path), strict=True):
        stem = key.removeprefix(f"{packed.shard.split}/").replace("%2E", ".").replace("%25", "%")
        name = f"{stem.rpartition('/')[0]}/{file_name}".removeprefix("/")
        if sample_key(packed.shard.split, name) != key:
            raise ManifestError(path, f"the file name {file_name!r} is not that of {key!r}", packed.folder)
        names.append(name)
    return names


@lru_cache(maxsize=2)  # a new shard holds the crops of one old one
def _rows(packed: PackedShard) -> dict[str, PackedRow]:
    """Return name → row of a shard."""
    meta = read_checked_meta(packed.folder, packed.shard, packed.files[1])
    return dict(zip(_names(packed, meta), rows_of(meta), strict=True))
