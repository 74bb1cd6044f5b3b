"""`cameras.csv`: which camera hangs on which continent, as the owner says."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from pathlib import Path

from entire_id.errors import CamerasFileError, SourceError
from entire_id.records import Camera
from entire_id.schema import RESERVED_CONFIGS

__all__ = ["CAMERAS_FILE", "continent_slug", "parse_cameras", "read_cameras"]

CAMERAS_FILE = "cameras.csv"

_SLUG = re.compile(r"[a-z][a-z0-9_]*")


def continent_slug(name: str) -> str | None:
    """Return `name` as a config name: lower case, ASCII, underscores. None where it cannot be one.

    >>> continent_slug("North America"), continent_slug("Amérique"), continent_slug("test"), continent_slug("7")
    ('north_america', 'amerique', None, None)
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[\s\-]+", "_", plain.strip().lower())
    return slug if _SLUG.fullmatch(slug) and slug not in RESERVED_CONFIGS else None


def parse_cameras(data: bytes, path: str | Path) -> tuple[Camera, ...]:
    """Return the cameras of a `cameras.csv`, sorted by camid.

    Args:
        data: the file: UTF-8 CSV with a header; columns camid and continent, any others are kept as they are.
        path: where it lies, for messages.

    Raises:
        CamerasFileError: no such columns, a camid that is no number ≥ 0, or one camid twice.
    """
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        header = [name.strip() for name in rows.fieldnames or ()]
    except UnicodeDecodeError as error:
        raise CamerasFileError(path, 1, f"not UTF-8 ({error.reason})") from error
    if missing := {"camid", "continent"} - set(header):
        raise CamerasFileError(path, 1, f"no column {' and '.join(sorted(missing))}; found {', '.join(header)}")
    rows.fieldnames = header
    cameras: dict[int, Camera] = {}
    for row in rows:
        columns = {name: (value or "").strip() for name, value in row.items() if name}
        if not re.fullmatch(r"[0-9]{1,9}", columns["camid"]):
            raise CamerasFileError(path, rows.line_num, f"camid {columns['camid']!r} is no number ≥ 0")
        camid = int(columns["camid"])
        if camid in cameras:
            raise CamerasFileError(path, rows.line_num, f"camera {camid} stands there twice")
        cameras[camid] = Camera(camid, continent_slug(columns["continent"]), columns)
    return tuple(cameras[camid] for camid in sorted(cameras))


def read_cameras(path: Path) -> tuple[Camera, ...]:
    """Return the cameras of the file at `path`; see `parse_cameras`.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return parse_cameras(path.read_bytes(), path)
    except OSError as error:
        raise SourceError(path, error.strerror or str(error)) from error
