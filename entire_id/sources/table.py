"""Anyone's crops, described by a table: CSV or Parquet with path, pid, camid, split; seq, frame, continent if known."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from entire_id.errors import SourceError, TableError
from entire_id.records import CAMERAS_FILE, NO_NUMBER, SPLITS, Camera, RawFile, Reason, Rejected, Sample
from entire_id.sources.cameras import read_cameras
from entire_id.sources.crops import NameParts, build_sample
from entire_id.sources.files import Folder

__all__ = ["TABLE_SUFFIXES", "TableSource"]

TABLE_SUFFIXES = frozenset({".csv", ".parquet"})
_REQUIRED = ("path", "pid", "camid", "split")
_TABLE_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error)


class TableSource:
    """Crops that a table lists, with paths relative to the table's folder; see `records.Source`."""

    def __init__(self, path: Path, cameras_path: Path | None = None) -> None:
        """Check the table's columns.

        Args:
            path: `.csv` (UTF-8, with a header) or `.parquet`.
            cameras_path: `cameras.csv`; the one beside the table by default.

        Raises:
            TableError: a column is missing, or the file cannot be parsed.
            CamerasFileError: `cameras.csv` is malformed.
        """
        if not path.is_file():
            raise SourceError(path, "no such file")
        self._path = path
        self._folder = Folder(path.parent)
        beside = path.parent / CAMERAS_FILE
        self._cameras = read_cameras(cameras_path or beside) if cameras_path or beside.is_file() else ()
        columns = _read_columns(path)
        if missing := [name for name in _REQUIRED if name not in columns]:
            raise TableError(path, f"no column {', '.join(missing)}", columns)

    @property
    def name(self) -> str:
        """Where the table lies."""
        return str(self._path)

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """Cameras by camid; empty without a `cameras.csv`."""
        return self._cameras

    def read(self, path: str) -> RawFile:
        """One file; see `records.Source`."""
        return self._folder.read(path)

    def stamp(self, path: str) -> tuple[int, ...]:
        """What tells whether a file has changed; see `records.Source`."""
        return self._folder.stamp(path)

    def samples(self) -> Iterator[Sample | Rejected]:
        """Every row of the table once, in its order."""
        continents = {camera.camid: camera.continent for camera in self._cameras}
        for row in _read_rows(self._path):
            yield self._sample(row, continents)

    def _sample(self, row: Mapping[str, Any], continents: Mapping[int, str | None]) -> Sample | Rejected:
        path = str(row["path"] or "").removeprefix("./")
        split = str(row["split"] or "")
        checked = self._folder.check(path)
        if isinstance(checked, Rejected):
            return checked
        if split not in SPLITS:
            return Rejected(path, Reason.SPLIT, f"{split!r} is none of {', '.join(SPLITS)}")
        try:
            numbers = NameParts(
                _integer(row, "pid"),
                _integer(row, "camid"),
                _integer(row, "seq", NO_NUMBER),
                _integer(row, "frame", NO_NUMBER),
            )
        except ValueError as error:
            return Rejected(path, Reason.NUMBER, str(error))
        return build_sample(
            Sample("", str(PurePosixPath(path)), split, *numbers), continents, str(row.get("continent") or "")
        )


def _integer(row: Mapping[str, Any], column: str, default: int | None = None) -> int:
    value = row.get(column)
    if (value is None or value == "") and default is not None:
        return default
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", str(value), re.ASCII):  # int() would read 12_3 as 123, too
        raise ValueError(f"{column} {value!r} is no whole number")
    return int(str(value))


def _read_columns(path: Path) -> list[str]:
    try:
        if path.suffix.lower() == ".parquet":
            return list(pq.read_schema(path).names)
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return next(csv.reader(lines), [])
    except _TABLE_ERRORS as error:
        raise TableError(path, f"cannot be read ({error})") from error


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path) as table:
                for batch in table.iter_batches():
                    yield from batch.to_pylist()
        else:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                yield from csv.DictReader(lines)
    except _TABLE_ERRORS as error:
        raise TableError(path, f"cannot be read ({error})") from error
