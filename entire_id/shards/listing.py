"""Every crop of a source: a few bytes each in memory, so that millions fit, and the rest in a file."""

from __future__ import annotations

import csv
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, starmap
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from entire_id.errors import CropRejectedError, OutputExistsError
from entire_id.records import SPLITS, Progress, Reason, Rejected, Sample, Source
from entire_id.shards.plan import Hashes, Indices, Rows, hash_keys
from entire_id.shards.tombstones import Tombstones

__all__ = ["Listing", "RejectedLog", "is_rejected_list", "list_crops", "samples_of"]

_HEADER = ("path", "reason", "detail")
_HEAD_BYTES = 64  # more than the header takes
_MAX_SORTED_ROWS = 200_000
_BATCH_ROWS = 1 << 13
_ROWS_AT_ONCE = 200_000  # of the file: some 10 shards, 20 MB
_SCHEMA = pa.schema(  # the fields of Sample
    [
        ("folder", pa.string()),
        ("name", pa.string()),
        ("split", pa.string()),
        ("pid", pa.int32()),
        ("camid", pa.int32()),
        ("seq", pa.int32()),
        ("frame", pa.int64()),
        ("continent", pa.string()),
    ]
)
_NAMES = _SCHEMA.names
_SPLIT_CODES = {split: code for code, split in enumerate(SPLITS)}


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
        if not self.path.is_file():
            return False
        with self.path.open("rb") as file:
            return is_rejected_list(file.read(_HEAD_BYTES))

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
    """The crops of a source, without pixels: 16 bytes a crop in memory, the rest in a file.

    Attributes:
        rows: what `plan_shards` wants to know.
        views: (camid, continent) → how many crops.
        path: Arrow stream of the fields of `Sample`, a row a crop; crops that are not in `rows` may stand there, too.
        places: (n,) int64 row of each crop in that file; None where they are the same.
    """

    rows: Rows
    views: Mapping[tuple[int, str], int]
    path: Path
    places: Indices | None

    def __len__(self) -> int:
        return len(self.rows.pid)

    def take(self, rows: Indices) -> pa.Table:
        """Return the fields of `Sample` of the given rows, in that order."""
        return next(self.tables([rows]))

    def tables(self, parts: Iterable[Indices]) -> Iterator[pa.Table]:
        """Yield `take(rows)` of each of `parts`; the file is read once for some of them together."""
        waiting: list[Indices] = []
        num_rows = 0
        for rows in parts:
            waiting.append(rows)
            num_rows += len(rows)
            if num_rows >= _ROWS_AT_ONCE:
                yield from self._read(waiting)
                waiting, num_rows = [], 0
        if waiting:
            yield from self._read(waiting)

    def _read(self, parts: list[Indices]) -> Iterator[pa.Table]:
        rows = np.concatenate(parts)
        places = rows if self.places is None else self.places[rows]
        wanted, position = np.unique(places, return_inverse=True)
        found = []
        start = 0
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                low, high = np.searchsorted(wanted, [start, start + len(batch)])
                found.append(batch.take(pa.array(wanted[low:high] - start)))
                start += len(batch)
        table = pa.Table.from_batches(found, _SCHEMA).combine_chunks()
        start = 0
        for part in parts:
            yield table.take(pa.array(position[start : start + len(part)]))
            start += len(part)


def list_crops(
    source: Source,
    seed: int,
    path: Path,
    log: RejectedLog,
    progress: Progress,
    erased: Tombstones | None = None,
) -> Listing:
    """Write every usable crop of `source` to the file `path` and return the listing; the other crops go to `log`.

    Of several files with one key the first by path is kept, and none whose person or key was `erased`.
    """
    views: Counter[tuple[int, str]] = Counter()
    rows = _GrowingRows()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as stream:
        for samples in _batches(_keep_samples(source, log, progress, erased)):
            columns = dict(zip(Sample._fields, zip(*samples, strict=True), strict=True))
            stream.write_batch(pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in _SCHEMA], _NAMES))
            views.update(zip(columns["camid"], columns["continent"], strict=True))
            rows.extend(columns, hash_keys([sample.key for sample in samples], seed))
    listing = Listing(rows.close(), views, path, None)
    twins = _duplicates(listing)
    for sample in twins.values():
        log.add(Rejected(sample.path, Reason.DUPLICATE_KEY, f"another file is {sample.key} too"))
        views[sample.camid, sample.continent] -= 1
    return _without(listing, list(twins)) if twins else listing


class _GrowingRows:
    """`Rows` to which crops are added. Arrays that grow in place: lists of parts would take the memory twice."""

    def __init__(self) -> None:
        self._split, self._continent = array("b"), array("h")
        self._pid, self._key_hash = array("i"), array("Q")
        self._codes: dict[str, int] = {}

    def extend(self, columns: Mapping[str, tuple[Any, ...]], key_hash: Hashes) -> None:
        """Add crops, given as columns of the fields of `Sample`."""
        for continent in dict.fromkeys(columns["continent"]):
            self._codes.setdefault(continent, len(self._codes))
        self._split.extend([_SPLIT_CODES[split] for split in columns["split"]])
        self._continent.extend([self._codes[continent] for continent in columns["continent"]])
        self._pid.extend(columns["pid"])
        self._key_hash.frombytes(key_hash.tobytes())

    def close(self) -> Rows:
        """Return the rows, with continents in the order of their names."""
        continents = tuple(sorted(self._codes))
        place = np.array([continents.index(continent) for continent in self._codes], np.int16)
        continent = np.frombuffer(self._continent, np.int16)
        return Rows(
            split=np.frombuffer(self._split, np.int8),
            splits=SPLITS,
            continent=place[continent],
            continents=continents,
            pid=np.frombuffer(self._pid, np.int32),
            key_hash=np.frombuffer(self._key_hash, np.uint64),
        )


def _without(listing: Listing, dropped: list[int]) -> Listing:
    keep = np.ones(len(listing), bool)
    keep[dropped] = False
    rows = listing.rows
    kept = replace(
        rows, split=rows.split[keep], continent=rows.continent[keep], pid=rows.pid[keep], key_hash=rows.key_hash[keep]
    )
    return replace(listing, rows=kept, views=+Counter(listing.views), places=np.flatnonzero(keep))


def samples_of(table: pa.Table) -> Iterator[Sample]:
    """Yield the samples that the rows of `Listing.take` stand for."""
    return starmap(Sample, zip(*(table[name].to_pylist() for name in Sample._fields), strict=True))


def _keep_samples(source: Source, log: RejectedLog, progress: Progress, erased: Tombstones | None) -> Iterator[Sample]:
    for number, sample in enumerate(source.samples()):
        if number % 4096 == 0:
            progress("listing", number, 0)
        if isinstance(sample, Rejected):
            log.add(sample)
        elif erased and (why := erased.names(sample)):
            log.add(Rejected(sample.path, Reason.ERASED, why))
        else:
            yield sample


def _batches(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while batch := list(islice(samples, _BATCH_ROWS)):
        yield batch


def _duplicates(listing: Listing) -> dict[int, Sample]:
    """Return the rows, and their samples, whose key a row with a smaller path has."""
    hashes = listing.rows.key_hash
    in_order = np.sort(hashes)
    twice = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    del in_order
    if not len(twice):
        return {}
    suspects = np.flatnonzero(np.isin(hashes, twice))
    found = sorted(zip(samples_of(listing.take(suspects)), suspects.tolist(), strict=True))
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
