"""The rows of a split as arrays: labels, and where each image's bytes lie.

Numbers are in memory. Keys and checksums, three quarters of a meta file, are read from it when they are first needed
where it lies on this machine; those of a remote place come with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from entire_id.errors import (
    DatasetNotFoundError,
    EntireIdError,
    ManifestError,
    RepositoryNotFoundError,
    SplitNotFoundError,
)
from entire_id.loading.files import Files, LocalFiles
from entire_id.schema import arrow_schema, meta_columns
from entire_id.shards.manifest import MANIFEST_FILE, Manifest, Shard, parse_manifest, read_manifest

__all__ = [
    "THREADS",
    "Sample",
    "ShardFile",
    "ShardIndex",
    "arrow_array",
    "broken",
    "check_size",
    "concat_indexes",
    "damage",
    "fetch_manifest",
    "find_shards",
    "open_index",
    "read_meta_table",
    "read_shard_meta",
    "sample_checksum",
]

THREADS = 16
"""Requests at once to a remote place."""

_SCHEMA = arrow_schema(meta_columns())
_NUMBERS = ("pid", "camid", "seq", "width", "height", "offset", "length")
_COLUMNS: dict[str, type[np.signedinteger[Any]]] = {
    **dict.fromkeys(("pid", "camid", "seq", "width", "height", "length", "shard", "place"), np.int32),
    "offset": np.int64,
}
_TEXTS = {"key": pa.string(), "xxh3": pa.uint64()}

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


class Sample(NamedTuple):
    """An image whose bytes tell whether the offsets recorded for a shard hold.

    Attributes:
        place: its number among the rows of the shard.
        start: where its bytes start.
        stop: where they end.
        xxh3: their checksum; None where the meta file lies on this machine and can be asked.
    """

    place: int
    start: int
    stop: int
    xxh3: int | None


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard, and what must hold before the offsets recorded for it are trusted.

    Attributes:
        files: where it lies.
        path: relative to the data set.
        meta_path: of its meta file.
        rows: crops in it.
        continent: its continent.
        num_bytes: its size, as the manifest says.
        samples: its first image, its last and one in the middle.
        source: name of the data set in a joined one, `""` otherwise.
    """

    files: Files
    path: str
    meta_path: str
    rows: int
    continent: str
    num_bytes: int
    samples: tuple[Sample, ...]
    source: str = ""


class ShardIndex:
    """Rows of one or more shards, column by column. Arrays are read-only.

    It crosses process borders as the name of a file with its columns, which all processes map: see `__reduce__`.

    Attributes:
        shards: the shards, in order.
        table: (n rows) the columns below as an Arrow table.
        texts: `key` and `xxh3` of all rows of a shard, by its number; of those that are not read when asked for.
        pids: (n,) int32 identities; -1 is junk, -2 a distractor without a label.
        camids: (n,) int32 cameras.
        seqs: (n,) int32 sequence numbers, -1 for none.
        widths: (n,) int32, px.
        heights: (n,) int32, px.
        shard_numbers: (n,) int32, which of `shards` holds the row.
        places: (n,) int32, its number among the rows of that shard.
        offsets: (n,) int64, where the image's bytes start in the shard.
        lengths: (n,) int32, how many bytes it has.
        rebuild: see `__init__`.
    """

    def __init__(
        self,
        shards: Sequence[ShardFile],
        table: pa.Table,
        texts: Mapping[int, pa.RecordBatch],
        rebuild: Callable[[], ShardIndex] | None = None,
    ) -> None:
        """Take columns as they are.

        Args:
            shards: the shards.
            table: see above.
            texts: see above; at least those of all shards that lie elsewhere.
            rebuild: makes the same index anew, where the mapped file is gone; can be pickled. Without one, columns
                are pickled themselves.
        """
        self.shards = tuple(shards)
        self.table = table.combine_chunks()
        self.texts = texts
        self.rebuild = rebuild
        self._mapped: _Mapped | None = None
        self._read: dict[tuple[int, str], pa.Array] = {}
        self.pids: Int32s = _values(self.table, "pid")
        self.camids: Int32s = _values(self.table, "camid")
        self.seqs: Int32s = _values(self.table, "seq")
        self.widths: Int32s = _values(self.table, "width")
        self.heights: Int32s = _values(self.table, "height")
        self.shard_numbers: Int32s = _values(self.table, "shard")
        self.places: Int32s = _values(self.table, "place")
        self.offsets: Int64s = _values(self.table, "offset")
        self.lengths: Int32s = _values(self.table, "length")

    def __len__(self) -> int:
        return len(self.pids)

    def key(self, row: int) -> str:
        """Return the key of `row`; the first time in a shard, its meta file is read.

        Raises:
            ManifestError: that is not what the manifest says.
        """
        key: str = self._text(row, "key")
        return key

    def checksum(self, row: int) -> int:
        """Return the XXH3-64 of the bytes of `row`; the first time in a shard, its meta file is read.

        Raises:
            ManifestError: that is not what the manifest says.
        """
        checksum: int = self._text(row, "xxh3")
        return checksum

    @property
    def keys(self) -> list[str]:
        """All keys, read anew each time: millions of them take hundreds of megabytes. Raises as `key` does."""
        columns, rows = self._all_texts("key")
        keys: list[str] = pa.chunked_array(columns, pa.string()).cast(pa.large_string()).take(rows).to_pylist()
        return keys

    @property
    def xxh3(self) -> npt.NDArray[np.uint64]:
        """(n,) uint64 checksums of all rows, read anew each time. Raises as `checksum` does."""
        columns, rows = self._all_texts("xxh3")
        checksums: npt.NDArray[np.uint64] = np.concatenate([np.empty(0, np.uint64), *map(_numpy_array, columns)])[rows]
        return checksums

    def _text(self, row: int, name: str) -> Any:  # noqa: ANN401 a key or a checksum
        number = self.shard_numbers.item(row)
        if number in self.texts:
            column = self.texts[number][name]
        else:
            column = self._read.get((number, name))
            if column is None:
                column = self._read[number, name] = _read_text(self.shards[number], name)
        return column[self.places.item(row)].as_py()

    def _all_texts(self, name: str) -> tuple[list[pa.Array], Int64s]:
        """Return the keys or checksums of all shards that have rows, and which of them the rows have."""
        used = np.flatnonzero(np.bincount(self.shard_numbers)).tolist()
        columns = [self.texts[n][name] if n in self.texts else _read_text(self.shards[n], name) for n in used]
        starts = np.zeros(len(self.shards), np.int64)
        starts[used] = np.cumsum([0, *map(len, columns)])[:-1]
        return columns, starts[self.shard_numbers] + self.places

    @property
    def continent_names(self) -> tuple[str, ...]:
        """Continents of the shards, sorted."""
        return tuple(sorted({shard.continent for shard in self.shards}))

    @property
    def continents(self) -> npt.NDArray[np.int16]:
        """(n,) int16 numbers into `continent_names`."""
        return self._by_shard([self.continent_names.index(shard.continent) for shard in self.shards])

    @property
    def source_names(self) -> tuple[str, ...]:
        """Data sets that were joined, in the order of their shards; `("",)` where none was."""
        return tuple(dict.fromkeys(shard.source for shard in self.shards))

    @property
    def sources(self) -> npt.NDArray[np.int16]:
        """(n,) int16 numbers into `source_names`."""
        names = {name: number for number, name in enumerate(self.source_names)}
        return self._by_shard([names[shard.source] for shard in self.shards])

    def _by_shard(self, numbers: list[int]) -> npt.NDArray[np.int16]:
        return np.array(numbers, np.int16)[self.shard_numbers]

    def take(self, rows: npt.NDArray[np.int64 | np.bool_], rebuild: Callable[[], ShardIndex] | None) -> ShardIndex:
        """Return the rows of those numbers, or where a mask is True."""
        columns = {name: _values(self.table, name)[rows] for name in _COLUMNS}
        used = np.bincount(columns["shard"], minlength=len(self.shards)) > 0
        texts = {number: texts for number, texts in self.texts.items() if used[number]}
        return ShardIndex(self.shards, _table(columns), texts, rebuild)

    def __reduce__(self) -> tuple[object, ...]:
        """Write the columns once, for all processes to map; the file goes when this object does.

        A worker then starts without a copy of millions of rows. One that finds no file any more reads the data set.
        """
        if self.rebuild is None:
            return ShardIndex, (self.shards, self.table, self.texts)
        with _WRITING:
            if self._mapped is None or not self._mapped.folder.exists():
                self._mapped = _Mapped(self.table, self.texts)
        return _mapped_index, (self.shards, self._mapped.folder, tuple(self.texts), self.rebuild)


_WRITING = threading.Lock()


class _Mapped:
    """A folder with an Arrow file of the numbers, and one of the texts where there are any; it goes when this does."""

    def __init__(self, table: pa.Table, texts: Mapping[int, pa.RecordBatch]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="entire-id-"))
        weakref.finalize(self, _remove, self.folder, os.getpid())
        _write_arrow(self.folder / _NUMBERS_FILE, table.schema, table.to_batches())
        if texts:
            _write_arrow(self.folder / _TEXTS_FILE, pa.schema(_TEXTS), texts.values())


_NUMBERS_FILE, _TEXTS_FILE = "numbers.arrow", "texts.arrow"


def _write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _remove(folder: Path, process: int) -> None:
    """Remove the folder, but not from a forked child, which has a copy of the object that owns it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _mapped_index(
    shards: Sequence[ShardFile], folder: Path, with_texts: tuple[int, ...], rebuild: Callable[[], ShardIndex]
) -> ShardIndex:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(folder / _NUMBERS_FILE))).read_all()
        batches = pa.ipc.open_file(pa.memory_map(str(folder / _TEXTS_FILE))) if with_texts else None
    except (OSError, pa.ArrowInvalid):
        return rebuild()
    texts = {number: batches.get_batch(place) for place, number in enumerate(with_texts)} if batches else {}
    return ShardIndex(shards, table, texts, rebuild)


def arrow_array(values: npt.NDArray[Any]) -> pa.Array:
    """Return an Arrow array of the same memory.

    As `pa.array` does, which imports pandas first where there is one: half a second, in every process.
    """
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _table(columns: Mapping[str, npt.NDArray[Any]]) -> pa.Table:
    return pa.table({name: arrow_array(values) for name, values in columns.items()})


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numpy_array(values: pa.Array) -> Any:  # noqa: ANN401 an array of the column's type
    """Return the same memory as a numpy array, read-only. As `to_numpy` does, which imports pandas, too."""
    dtype = values.type.to_pandas_dtype()
    if not len(values):
        return np.empty(0, dtype)
    array = np.frombuffer(values.buffers()[1], dtype, values.offset + len(values))[values.offset :]
    array.flags.writeable = False
    return array


def _values(table: pa.Table, name: str) -> Any:  # noqa: ANN401 an array of the column's type
    return _numpy_array(_array(table, name))


def concat_indexes(
    parts: Iterable[ShardIndex], num_rows: int, rebuild: Callable[[], ShardIndex] | None = None
) -> ShardIndex:
    """Return the rows of all parts, one after the other; each part may go when its `num_rows` share is copied."""
    shards: list[ShardFile] = []
    texts: dict[int, pa.RecordBatch] = {}
    columns = {name: np.empty(num_rows, dtype) for name, dtype in _COLUMNS.items()}
    start = 0
    for part in parts:
        stop = start + len(part)
        for name, column in columns.items():
            column[start:stop] = _values(part.table, name)
        columns["shard"][start:stop] += np.int32(len(shards))
        texts |= {len(shards) + number: batch for number, batch in part.texts.items()}
        shards.extend(part.shards)
        start = stop
    return ShardIndex(shards, _table(columns), texts, rebuild)


# --- reading the index ---


def fetch_manifest(files: Files) -> Manifest:
    """Return the manifest; from then on a cache keeps what is read, for it is known what it belongs to.

    Raises:
        DatasetNotFoundError: no manifest lies there.
        ManifestError: it is no manifest, or of another content than the first time it was read.
        DownloadError, RepositoryNotFoundError: it cannot be fetched.
    """
    if isinstance(files, LocalFiles):
        manifest = read_manifest(files.folder)
    else:
        try:
            data = files.read(MANIFEST_FILE)
        except RepositoryNotFoundError:
            raise
        except FileNotFoundError as error:
            raise DatasetNotFoundError(files.name, f"no {MANIFEST_FILE} in it") from error
        manifest = parse_manifest(data, f"{files.name}/{MANIFEST_FILE}")
    if files.content not in ("", manifest.content_sha256):
        raise broken(files, MANIFEST_FILE, "it describes another content than when it was first read")
    files.content = manifest.content_sha256
    return manifest


def find_shards(name: str, manifest: Manifest, splits: tuple[str, ...]) -> list[Shard]:
    """Return the shards of some splits, one split after the other, each in the order of the manifest.

    Raises:
        SplitNotFoundError: there is no such split in the data set called `name`.
    """
    for split in splits:
        if split not in manifest.splits:
            raise SplitNotFoundError(name, split, manifest.splits)
    return [shard for split in splits for shard in manifest.shards if shard.split == split]


def open_index(files: Files, splits: tuple[str, ...], manifest: Manifest | None = None) -> ShardIndex:
    """Return the rows of all shards of some splits, as `find_shards` orders them. Remote meta files are read at once.

    Args:
        files: the data set.
        splits: of `train`, `val`, `query` and `gallery`.
        manifest: what `fetch_manifest` gave; fetched by default.

    Raises:
        DatasetNotFoundError: no data set lies there.
        SplitNotFoundError: it has no such split.
        ManifestError: a meta file, or a shard of this machine, is not what the manifest says.
        DownloadError, RepositoryNotFoundError: a file cannot be fetched.
    """
    manifest = manifest or fetch_manifest(files)
    shards = find_shards(files.name, manifest, splits)
    num_rows = sum(shard.rows for shard in shards)
    rebuild = partial(open_index, files, splits)
    if files.is_local:
        return concat_indexes((_sized(read_shard_meta(files, manifest, shard)) for shard in shards), num_rows, rebuild)
    with ThreadPoolExecutor(THREADS) as pool:
        return concat_indexes(pool.map(partial(read_shard_meta, files, manifest), shards), num_rows, rebuild)


def _sized(part: ShardIndex) -> ShardIndex:
    check_size(part.shards[0])
    return part


def read_shard_meta(files: Files, manifest: Manifest, shard: Shard) -> ShardIndex:
    """Return the rows of one shard.

    Raises:
        ManifestError: its meta file is missing, or not what the manifest says.
        DownloadError, RepositoryNotFoundError: it cannot be fetched.
    """
    meta = _read_meta(files, manifest, shard, _NUMBERS if files.is_local else (*_NUMBERS, *_TEXTS))
    texts = None
    if not files.is_local:
        texts = pa.record_batch({name: _converted(files, shard.meta_path, meta, name) for name in _TEXTS})
    num_bytes = manifest.entries[shard.path].bytes
    file = ShardFile(
        files,
        shard.path,
        shard.meta_path,
        shard.rows,
        shard.continent,
        num_bytes,
        tuple(_sample(meta, texts, place) for place in dict.fromkeys((0, shard.rows - 1, shard.rows // 2))),
    )
    table = meta.select(_NUMBERS)
    table = table.append_column("shard", arrow_array(np.zeros(len(meta), np.int32)))
    table = table.append_column("place", arrow_array(np.arange(len(meta), dtype=np.int32)))
    return ShardIndex([file], table, {} if texts is None else {0: texts})


def _sample(meta: pa.Table, texts: pa.RecordBatch | None, place: int) -> Sample:
    start = meta["offset"][place].as_py()
    checksum = None if texts is None else texts["xxh3"][place].as_py()
    return Sample(place, start, start + meta["length"][place].as_py(), checksum)


def sample_checksum(shard: ShardFile, sample: Sample) -> int:
    """Return the checksum of one of a shard's samples.

    Raises:
        ManifestError: its meta file is not what the manifest says.
    """
    if sample.xxh3 is not None:
        return sample.xxh3
    checksum: int = _read_text(shard, "xxh3")[sample.place].as_py()
    return checksum


def read_meta_table(files: Files, manifest: Manifest, shard: Shard) -> pa.Table:
    """Return the meta file of a shard: every column of `schema.meta_columns()`.

    Raises:
        ManifestError: it is missing, or not what the manifest says.
        DownloadError, RepositoryNotFoundError: it cannot be fetched.
    """
    return _read_meta(files, manifest, shard, None)


def _read_meta(files: Files, manifest: Manifest, shard: Shard, names: Sequence[str] | None) -> pa.Table:
    """Return some columns of a meta file, or all. Raises as `read_meta_table` does."""
    with damage(files, shard.meta_path):
        if files.is_local:
            return _read_columns(files, shard.meta_path, Path(files.name, shard.meta_path), shard.rows, names)
        data = pa.BufferReader(_fetched_meta(files, manifest, shard.meta_path))
        return _read_columns(files, shard.meta_path, data, shard.rows, names)


def _read_text(shard: ShardFile, name: str) -> pa.Array:
    """Return the keys or the checksums of a shard whose meta file lies on this machine.

    Raises:
        ManifestError: it is missing, or not what the manifest says.
    """
    files = shard.files
    with damage(files, shard.meta_path):
        meta = _read_columns(files, shard.meta_path, Path(files.name, shard.meta_path), shard.rows, [name])
    return _converted(files, shard.meta_path, meta, name)


def _read_columns(
    files: Files, path: str, source: Path | pa.BufferReader, num_rows: int, names: Sequence[str] | None
) -> pa.Table:
    with pq.ParquetFile(source) as file:
        if file.metadata.num_rows != num_rows or not num_rows:
            what = f"{file.metadata.num_rows} rows, {num_rows} expected; the manifest knows another file"
            raise broken(files, path, what)
        if not file.schema_arrow.equals(_SCHEMA):
            raise broken(files, path, "not the columns of the format")
        meta = file.read(columns=names, use_threads=False)
    meta.validate(full=True)
    if any(column.null_count for column in meta.columns):
        raise broken(files, path, "it holds nulls")
    return meta


def _converted(files: Files, path: str, meta: pa.Table, name: str) -> pa.Array:
    """Return the keys or the checksums as an index keeps them."""
    texts = _array(meta, name)
    if name == "key":
        return texts
    checksums = _checksums(texts)
    if checksums is None:
        raise broken(files, path, "its checksums are not of 16 hexadecimal digits")
    return arrow_array(checksums)


def _fetched_meta(files: Files, manifest: Manifest, path: str) -> bytes:
    """Return the bytes of a meta file from elsewhere, compared with their digest."""
    digest = manifest.entries[path].sha256
    data = files.read(path)
    if hashlib.sha256(data).hexdigest() != digest:
        files.forget(path)
        data = files.read(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise broken(files, path, f"{len(data):,} bytes, not those of its digest; the manifest knows another file")
    return data


_DIGITS = np.full(256, 255, np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def _checksums(texts: pa.StringArray) -> npt.NDArray[np.uint64] | None:
    """Return checksums as numbers, (n,); None if one is not of 16 hexadecimal digits."""
    _, stops, text = texts.buffers()
    bounds = np.frombuffer(stops, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    digits = _DIGITS[np.frombuffer(text, np.uint8)[bounds[0] : bounds[-1]]]
    if (np.diff(bounds) != 16).any() or (digits > 15).any():
        return None
    pairs = digits.reshape(-1, 2)
    numbers: npt.NDArray[np.uint64] = (pairs[:, 0] << 4 | pairs[:, 1]).view(">u8").astype(np.uint64)
    return numbers


def broken(files: Files, path: str, what: str) -> ManifestError:
    """Return the error that says what is wrong with a file that the manifest lists."""
    return ManifestError(f"{files.name}/{path}", what, files.name if files.is_local else None)


@contextmanager
def damage(files: Files, path: str) -> Iterator[None]:
    """Turn what goes wrong with a file that the manifest lists into errors of the data set.

    Raises:
        ManifestError: the file is missing, cannot be read, or ends too early.
    """
    try:
        yield
    except EntireIdError:
        raise
    except EOFError as error:
        raise broken(files, path, "it ends before its last image does") from error
    except (OSError, pa.ArrowException) as error:
        raise broken(files, path, f"cannot be read ({error})") from error


def check_size(shard: ShardFile) -> None:
    """Check that a shard is as large as the manifest says.

    Raises:
        ManifestError: it is not, or cannot be read.
        DownloadError, RepositoryNotFoundError: it cannot be asked for.
    """
    with damage(shard.files, shard.path):
        num_bytes = shard.files.size(shard.path)
    if num_bytes != shard.num_bytes:
        what = f"{num_bytes:,} bytes, {shard.num_bytes:,} expected; the manifest knows another file"
        raise broken(shard.files, shard.path, what)
