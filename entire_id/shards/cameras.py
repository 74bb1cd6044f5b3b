"""The `cameras.csv` of a packed data set."""

from __future__ import annotations

import csv
import io

from entire_id.records import UNKNOWN_CONTINENT, Camera
from entire_id.shards.listing import Listing

__all__ = ["cameras_csv", "undescribed_cameras"]


def _seen_continents(listing: Listing) -> dict[int, set[str]]:
    """Return the continents under which each camera's crops are packed."""
    seen: dict[int, set[str]] = {}
    for camid, continent in listing.views:
        seen.setdefault(camid, set()).add(continent)
    return seen


def undescribed_cameras(cameras: tuple[Camera, ...], listing: Listing) -> tuple[int, ...]:
    """Return the cameras, sorted, whose crops have no continent and that nobody described."""
    described = {camera.camid for camera in cameras}
    seen = _seen_continents(listing).items()
    return tuple(sorted(camid for camid, found in seen if UNKNOWN_CONTINENT in found and camid not in described))


def cameras_csv(cameras: tuple[Camera, ...], listing: Listing) -> str:
    """Return the text of `cameras.csv`: what the owner wrote, and every camera that was seen.

    The continent is that of the camera's crops, blank where they have several (a table may name them).
    """
    described = {camera.camid: camera for camera in cameras if camera.continent is not None}
    seen = _seen_continents(listing)
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
