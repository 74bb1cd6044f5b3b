"""`cameras.csv`: which camera hangs on which continent, as the owner says."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from pathlib import Path

from entire_id.errors import CamerasFileError, SourceError
from entire_id.records import UNKNOWN_CONTINENT, Camera
from entire_id.schema import is_continent

__all__ = ["continent_slug", "parse_cameras", "read_cameras"]


def continent_slug(name: str) -> str | None:
    """Return `name` as a config name: lower case, ASCII, underscores. None where it cannot be one.

    >>> continent_slug("North America"), continent_slug("Amérique"), continent_slug("test"), continent_slug("7")
    ('north_america', 'amerique', None, None)
    >>> continent_slug("Łódź") is None  # no letter is dropped silently
    True
    """
    letters = (letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    slug = re.sub(r"[\s\-]+", "_", "".join(letters).strip().lower())
    return slug if is_continent(slug) else None


def parse_cameras(data: bytes, path: str | Path) -> tuple[Camera, ...]:
    """Return the cameras of a `cameras.csv`, sorted by camid.

    Args:
        data: the file: UTF-8 CSV with a header; columns camid and continent (blank: unknown), others are kept.
        path: where it lies, for messages.

    Raises:
        CamerasFileError: no such columns, a camid that is no number ≥ 0, or one camid twice.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CamerasFileError(path, line, f"not UTF-8 ({error.reason})") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows.fieldnames = header = [name.strip() for name in rows.fieldnames or ()]
        if missing := {"camid", "continent"} - set(header):
            raise CamerasFileError(path, 1, f"no column {' and '.join(sorted(missing))}; found {', '.join(header)}")
        cameras: dict[int, Camera] = {}
        for row in rows:
            camera = _camera(row, path, rows.line_num)
            if camera.camid in cameras:
                raise CamerasFileError(path, rows.line_num, f"camera {camera.camid} stands there twice")
            cameras[camera.camid] = camera
    except csv.Error as error:
        raise CamerasFileError(path, rows.line_num, str(error)) from error
    return tuple(cameras[camid] for camid in sorted(cameras))


def _camera(row: dict[str, str], path: str | Path, line: int) -> Camera:
    columns = {name: (value or "").strip() for name, value in row.items() if name}
    if not re.fullmatch(r"[0-9]{1,9}", columns["camid"]):
        raise CamerasFileError(path, line, f"camid {columns['camid']!r} is no number ≥ 0")
    continent = continent_slug(columns["continent"]) if columns["continent"] else UNKNOWN_CONTINENT
    return Camera(int(columns["camid"]), continent, columns)


def read_cameras(path: Path) -> tuple[Camera, ...]:
    """Return the cameras of the file at `path`; see `parse_cameras`.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return parse_cameras(path.read_bytes(), path)
    except OSError as error:
        raise SourceError(path, error.strerror or str(error)) from error
