"""The known layouts, and the one function that opens any of them."""

from __future__ import annotations

from pathlib import Path

from entire_id.errors import SourceError
from entire_id.records import Source
from entire_id.remote import place_of
from entire_id.sources import entire
from entire_id.sources.crops import CropSource
from entire_id.sources.table import TABLE_SUFFIXES, TableSource

__all__ = ["LAYOUTS", "open_source"]

LAYOUTS = {layout.name: layout for layout in (entire.LAYOUT,)}
"""Naming families by the name that `--layout` takes. A new one is a module with a `Layout`, added here."""


def open_source(path: str | Path, layout: str = "entire-id", cameras_path: str | Path | None = None) -> Source:
    """Return the source at `path`: a table by its ending, else a folder or zip in the given layout.

    Args:
        path: folder, `.zip`, `.csv` or `.parquet`; or the URL of a folder.
        layout: a name of `LAYOUTS`.
        cameras_path: the owner's `cameras.csv`; the one beside the crops by default.

    Raises:
        SourceError: nothing readable is there, or the layout is unknown.
        MissingExtraError: the package that talks to such URLs is not installed.
    """
    place = place_of(path)
    cameras_path = None if cameras_path is None else _here(cameras_path)
    if isinstance(place, Path) and place.suffix.lower() in TABLE_SUFFIXES and not place.is_dir():
        return TableSource(place, cameras_path)
    if layout not in LAYOUTS:
        raise SourceError(place, f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if str(place).lower().endswith((".zip", *TABLE_SUFFIXES)):
        place = _here(place)
    return CropSource(place, LAYOUTS[layout], cameras_path)


def _here(path: str | Path) -> Path:
    """Return the path of a file that must lie on this machine."""
    place = place_of(path)
    if isinstance(place, Path):
        return place
    raise SourceError(place, "a zip, a table or a cameras.csv is not read at a URL; copy it here first")
