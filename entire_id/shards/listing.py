"""Every crop of a source as arrays: a few bytes a crop, so that millions fit in memory."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from entire_id.errors import CropRejectedError, OutputExistsError
from entire_id.records import SPLITS, Progress, Reason, Rejected, Sample, Source
from entire_id.shards.plan import Rows, hash_keys

__all__ = ["Listing", "RejectedLog", "list_crops"]

_HEADER = ("path", "reason", "detail")
_BATCH_ROWS = 1 << 16
_COLUMNS = ("path", "split", "key", "pid", "camid", "seq", "frame", "continent")
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("key", pa.string()),
        ("pid", pa.int32()),
        ("camid", pa.int32()),
        ("seq", pa.int32()),
        ("frame", pa.int64()),
        ("continent", pa.dictionary(pa.int16(), pa.string())),
    ]
)


class RejectedLog:
    """Writes `OUT.rejected.csv` and counts by reason. The file appears on a clean exit, and only if there is a row."""

    def __init__(self, path: Path, *, strict: bool) -> None:
        self.path = path
        self.counts: Counter[Reason] = Counter()
        self._strict = strict
        self._partial = path.with_name(path.name + ".partial")

    def __enter__(self) -> Self:
        if self.path.exists() and not self._is_ours():
            raise OutputExistsError(self.path, "it is needed for the list of rejected files, and is something else")
        self._file = self._partial.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(_HEADER)
        return self

    def _is_ours(self) -> bool:
        """Tell whether an earlier run wrote the file that stands there."""
        header = (",".join(_HEADER) + "\n").encode()
        return self.path.is_file() and self.path.read_bytes()[: len(header)] == header

    def add(self, rejected: Rejected) -> None:
        """Note one file.

        Raises:
            CropRejectedError: the log is strict.
        """
        if self._strict:
            raise CropRejectedError(rejected.path, rejected.reason, rejected.detail)
        self.counts[rejected.reason] += 1
        self._writer.writerow([rejected.path, rejected.reason, rejected.detail])

    def publish(self) -> Path | None:
        """Give the file its final name; None, and no file, if nothing was rejected."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self.counts:
            self._partial.replace(self.path)
            return self.path
        self.path.unlink(missing_ok=True)
        return None

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Listing:
    """The crops of a source, without pixels.

    Attributes:
        table: path, split, key, pid, camid, seq, frame, continent of each.
        rows: the same as `plan_shards` wants them.
    """

    table: pa.Table
    rows: Rows

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Return the given rows, in that order."""
        return self.table.take(pa.array(rows))


def list_crops(source: Source, seed: int, log: RejectedLog, progress: Progress) -> Listing:
    """Return every usable crop of `source`; the others go to `log`.

    Of several files with one key the first is kept.
    """
    samples = _keep_samples(source, log, progress)
    batches = list(_batches(samples))
    table = pa.Table.from_batches(batches, _SCHEMA).unify_dictionaries()
    hashes = [hash_keys(batch["key"].to_pylist(), seed) for batch in table.to_batches()]
    key_hash = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    twins = _duplicates(table["key"], key_hash)
    if len(twins):
        for path, key in zip(*(table.take(twins)[name].to_pylist() for name in ("path", "key")), strict=True):
            log.add(Rejected(path, Reason.DUPLICATE_KEY, f"another file is {key} too"))
        keep = np.ones(len(table), bool)
        keep[twins] = False
        table, key_hash = table.filter(pa.array(keep)), key_hash[keep]
    return Listing(table, _rows(table, key_hash))


def _keep_samples(source: Source, log: RejectedLog, progress: Progress) -> Iterator[Sample]:
    for number, sample in enumerate(source.samples()):
        if number % 4096 == 0:
            progress("listing", number, 0)
        if isinstance(sample, Rejected):
            log.add(sample)
        else:
            yield sample


def _batches(samples: Iterator[Sample]) -> Iterator[pa.RecordBatch]:
    columns: list[list[object]] = [[] for _ in _COLUMNS]
    for sample in samples:
        for values, name in zip(columns, _COLUMNS, strict=True):
            values.append(getattr(sample, name))
        if len(columns[0]) == _BATCH_ROWS:
            yield _batch(columns)
            columns = [[] for _ in _COLUMNS]
    if columns[0]:
        yield _batch(columns)


def _batch(columns: list[list[object]]) -> pa.RecordBatch:
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _duplicates(keys: pa.ChunkedArray, key_hash: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the rows whose key an earlier row has, sorted."""
    order = np.argsort(key_hash, kind="stable")
    same = key_hash[order][1:] == key_hash[order][:-1]
    suspects = np.flatnonzero(np.append(same, False) | np.append(False, same))
    seen: set[str] = set()
    twins = []
    for row in order[suspects].tolist():
        key = keys[row].as_py()
        if key in seen:
            twins.append(row)
        seen.add(key)
    return np.array(sorted(twins), np.int64)


def _rows(table: pa.Table, key_hash: npt.NDArray[np.uint64]) -> Rows:
    split, _ = _codes(table["split"], SPLITS)
    names = sorted({name for chunk in table["continent"].chunks for name in chunk.dictionary.to_pylist()})
    continent, continents = _codes(table["continent"], tuple(names))
    return Rows(split, SPLITS, continent, continents, table["pid"].to_numpy(), key_hash)


def _codes(column: pa.ChunkedArray, names: tuple[str, ...]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    position = {name: code for code, name in enumerate(names)}
    parts = [
        np.array([position[name] for name in chunk.dictionary.to_pylist()], np.int64)[chunk.indices.to_numpy()]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.fromiter(chain.from_iterable(parts), np.int64) if not parts else np.concatenate(parts), names
