"""The `cameras.csv` of a packed data set."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping

from entire_id.records import UNKNOWN_CONTINENT, Camera

__all__ = ["cameras_csv", "packed_cameras", "undescribed_cameras"]


Views = Mapping[tuple[int, str], int]
"""(camid, continent) → how many crops."""


def _seen_continents(views: Views) -> dict[int, set[str]]:
    """Return the continents under which each camera's crops are packed."""
    seen: dict[int, set[str]] = {}
    for camid, continent in views:
        seen.setdefault(camid, set()).add(continent)
    return seen


def undescribed_cameras(cameras: tuple[Camera, ...], views: Views) -> tuple[int, ...]:
    """Return the cameras, sorted, whose crops have no continent and that nobody described."""
    described = {camera.camid for camera in cameras}
    seen = _seen_continents(views).items()
    return tuple(sorted(camid for camid, found in seen if UNKNOWN_CONTINENT in found and camid not in described))


def cameras_csv(cameras: tuple[Camera, ...], views: Views) -> str:
    """Return the text of `cameras.csv`: what the owner wrote, and every camera that was seen.

    The continent is that of the camera's crops, blank where they have several (a table may name them).
    """
    described = {camera.camid: camera for camera in cameras if camera.continent is not None}
    seen = _seen_continents(views)
    extra = list(dict.fromkeys(name for camera in cameras for name in camera.columns))
    columns = ["camid", "continent", *(name for name in extra if name not in ("camid", "continent"))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for camid in sorted({*described, *seen}):
        camera = described.get(camid, Camera(camid, UNKNOWN_CONTINENT))
        found = seen.get(camid, {camera.continent})
        continent = next(iter(found)) if len(found) == 1 else ""
        writer.writerow({**camera.columns, "camid": camid, "continent": continent})
    return text.getvalue()


def packed_cameras(text: str, lost: Collection[int]) -> tuple[Camera, ...]:
    """Return the cameras that the owner of a packed data set described, as far as its `cameras.csv` tells.

    Packing notes cameras that nobody described, too. One that has crops no more, and of which nothing but its number is
    known, is taken for such a one.

    Args:
        text: of that file.
        lost: cameras that had crops and have none any more.
    """
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    cameras = (Camera(int(row["camid"]), row["continent"], row) for row in rows)
    return tuple(camera for camera in cameras if camera.camid not in lost or _is_described(camera))


def _is_described(camera: Camera) -> bool:
    known = {name for name, value in camera.columns.items() if value} - {"camid", "continent"}
    return bool(known) or camera.continent != UNKNOWN_CONTINENT
