"""Every crop of a source as arrays: a few bytes a crop, so that millions fit in memory."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, starmap
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from entire_id.errors import CropRejectedError, OutputExistsError
from entire_id.records import SPLITS, Progress, Reason, Rejected, Sample, Source
from entire_id.shards.plan import Rows, hash_keys

__all__ = ["Listing", "RejectedLog", "is_rejected_list", "list_crops", "samples_of"]

_HEADER = ("path", "reason", "detail")
_MAX_SORTED_ROWS = 200_000
_BATCH_ROWS = 1 << 13
_SCHEMA = pa.schema(  # the fields of Sample
    [
        ("folder", pa.dictionary(pa.int16(), pa.string())),
        ("name", pa.string()),
        ("split", pa.dictionary(pa.int8(), pa.string())),
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
        return self.path.is_file() and is_rejected_list(self.path.read_bytes())

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
        self._sort()
        os.fsync(self._file.fileno())
        if self.counts:
            self._partial.replace(self.path)
            return self.path
        self.path.unlink(missing_ok=True)
        return None

    def _sort(self) -> None:
        """Put the rows in the order of paths, which the file system does not give, unless they are too many."""
        if self.counts.total() > _MAX_SORTED_ROWS:
            return
        with self._partial.open(newline="", encoding="utf-8") as file:
            rows = sorted(list(csv.reader(file))[1:])
        self._file.seek(0)
        self._writer.writerows([_HEADER, *rows])
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(OSError):  # the disk may be full; what matters was flushed in publish()
                self._file.close()
        finally:
            self._partial.unlink(missing_ok=True)


def is_rejected_list(data: bytes) -> bool:
    """Tell whether a file that starts with `data` is a list of rejected files."""
    return data.startswith((",".join(_HEADER) + "\n").encode())


@dataclass(frozen=True, slots=True)
class Listing:
    """The crops of a source, without pixels: about 60 bytes a crop.

    Attributes:
        table: the fields of `Sample`, a row a crop.
        rows: the same as `plan_shards` wants them.
    """

    table: pa.Table
    rows: Rows

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Return the given rows, in that order."""
        return self.table.take(pa.array(rows))


def list_crops(source: Source, seed: int, log: RejectedLog, progress: Progress) -> Listing:
    """Return every usable crop of `source`; the others go to `log`.

    Of several files with one key the first by path is kept.
    """
    batches, hashes = [], []
    for samples in _batches(_keep_samples(source, log, progress)):
        columns = zip(*samples, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
        hashes.append(hash_keys([sample.key for sample in samples], seed))
    table = pa.Table.from_batches(batches, _SCHEMA).unify_dictionaries()
    key_hash = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    twins = _duplicates(table, key_hash)
    if twins:
        for sample in twins.values():
            log.add(Rejected(sample.path, Reason.DUPLICATE_KEY, f"another file is {sample.key} too"))
        keep = np.ones(len(table), bool)
        keep[list(twins)] = False
        table, key_hash = table.filter(pa.array(keep)), key_hash[keep]
    return Listing(table, _rows(table, key_hash))


def samples_of(table: pa.Table) -> Iterator[Sample]:
    """Yield the samples that the rows of `Listing.table` stand for."""
    return starmap(Sample, zip(*(table[name].to_pylist() for name in Sample._fields), strict=True))


def _keep_samples(source: Source, log: RejectedLog, progress: Progress) -> Iterator[Sample]:
    for number, sample in enumerate(source.samples()):
        if number % 4096 == 0:
            progress("listing", number, 0)
        if isinstance(sample, Rejected):
            log.add(sample)
        else:
            yield sample


def _batches(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while batch := list(islice(samples, _BATCH_ROWS)):
        yield batch


def _duplicates(table: pa.Table, key_hash: npt.NDArray[np.uint64]) -> dict[int, Sample]:
    """Return the rows, and their samples, whose key a row with a smaller path has."""
    order = np.argsort(key_hash, kind="stable")
    same = np.flatnonzero(key_hash[order][1:] == key_hash[order][:-1])
    suspects = order[np.union1d(same, same + 1)]
    found = sorted(zip(samples_of(table.take(pa.array(suspects))), suspects.tolist(), strict=True))
    first_path: dict[str, str] = {}
    for sample, _ in sorted(found, key=lambda item: item[0].path):
        first_path.setdefault(sample.key, sample.path)
    kept: set[str] = set()
    twins = {}
    for sample, row in found:
        if sample.path == first_path[sample.key] and sample.key not in kept:
            kept.add(sample.key)
        else:
            twins[row] = sample
    return twins


def _rows(table: pa.Table, key_hash: npt.NDArray[np.uint64]) -> Rows:
    split = _codes(table["split"], SPLITS)
    continents = tuple(sorted(table["continent"].unique().to_pylist()))
    continent = _codes(table["continent"], continents)
    return Rows(split, SPLITS, continent, continents, table["pid"].to_numpy(), key_hash)


def _codes(column: pa.ChunkedArray, names: tuple[str, ...]) -> npt.NDArray[np.int16]:
    position = {name: code for code, name in enumerate(names)}
    parts = [np.empty(0, np.int16)]
    for chunk in column.chunks:
        codes = np.array([position.get(name, -1) for name in chunk.dictionary.to_pylist()], np.int16)
        parts.append(codes[chunk.indices.to_numpy()])
    return np.concatenate(parts)
