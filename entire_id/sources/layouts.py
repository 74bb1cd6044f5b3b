"""The known layouts, and the one function that opens any of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from entire_id.errors import LayoutNotFoundError, SourceError, SourceUnreachableError
from entire_id.records import Source, split_suffix
from entire_id.remote import place_of
from entire_id.sources import cuhk, duke, entire, last, market, msmt
from entire_id.sources.crops import MAX_DEPTH, CropSource, Layout, find_bases, is_image_suffix, open_place, variant_of
from entire_id.sources.files import Files
from entire_id.sources.lists import ListPlace
from entire_id.sources.table import TABLE_SUFFIXES, TableSource

__all__ = ["AUTO", "LAYOUTS", "Recognised", "is_table", "open_source", "recognise"]

_ALL = (
    entire.LAYOUT,
    market.LAYOUT,
    market.LAYOUT_500K,
    msmt.V1,
    msmt.V2,
    duke.LAYOUT,
    duke.OCCLUDED,
    cuhk.DETECTED,
    cuhk.LABELED,
    last.LAYOUT,
)

LAYOUTS = {layout.name: layout for layout in _ALL}
"""Naming families by the name that `--layout` takes. A new one is a module with a `Layout`, added here."""

AUTO = "auto"
"""What `--layout` takes for the layout that `recognise` finds."""

_NUM_NAMES = 20  # looked at in each folder
_WIDER = {market.LAYOUT_500K.name: market.LAYOUT.name, duke.OCCLUDED.name: duke.LAYOUT.name}


def open_source(
    path: str | Path,
    layout: str = "entire-id",
    cameras_path: str | Path | None = None,
    lists_path: str | Path | None = None,
) -> Source:
    """Return the source at `path`: a table by its ending, else a folder or zip in the given layout.

    Args:
        path: folder, `.zip`, `.csv` or `.parquet`; or the URL of a folder.
        layout: a name of `LAYOUTS`, or `auto`, see `recognise`.
        cameras_path: the owner's `cameras.csv`; the one beside the crops by default.
        lists_path: folder of the layout's lists; those beside the crops by default.

    Raises:
        SourceError: nothing readable is there, or the layout is unknown, or `auto` and it cannot be told.
        MissingExtraError: the package that talks to such URLs is not installed.
    """
    place = place_of(path)
    cameras_path = None if cameras_path is None else _here(cameras_path)
    lists_path = None if lists_path is None else _here(lists_path)
    if is_table(place):
        return TableSource(_here(place), cameras_path)
    if layout not in (*LAYOUTS, AUTO):
        raise SourceError(place, f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}, or {AUTO}")
    if str(place).lower().endswith((".zip", *TABLE_SUFFIXES)):
        place = _here(place)
    found = recognise(place, lists_path).layout if layout == AUTO else LAYOUTS[layout]
    return CropSource(place, found, cameras_path, lists_path)


def is_table(path: str | Path) -> bool:
    """Tell whether a table of crops is meant, not a folder or zip."""
    place = place_of(path)
    return isinstance(place, Path) and place.suffix.lower() in TABLE_SUFFIXES and not place.is_dir()


def _here(path: str | Path) -> Path:
    """Return the path of a file that must lie on this machine."""
    place = place_of(path)
    if isinstance(place, Path):
        return place
    raise SourceError(place, "a zip, a table, lists or a cameras.csv are not read at a URL; copy it here first")


# --- which layout is it? ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recognised:
    """A layout, and the signs that it is the one."""

    layout: Layout
    why: str


def recognise(path: str | Path, lists_path: Path | None = None) -> Recognised:
    """Return the one layout that the folders, names and lists at `path` are those of.

    Args:
        path: folder or zip, or the URL of a folder.
        lists_path: folder of lists that lie elsewhere.

    Raises:
        SourceError: it is none of them, or may be several.
        LayoutNotFoundError: there is no folder of any.
    """
    files = open_place(place_of(path))
    looked: dict[str, _Look] = {}
    found: dict[str, _Look] = {}
    for depth in range(MAX_DEPTH + 1):  # a folder for each of ten thousand people is not looked into for other layouts
        looked = {layout.name: _look(files, layout, lists_path, depth) for layout in LAYOUTS.values()}
        if found := {name: look for name, look in looked.items() if look.why}:
            break
    for narrow, wide in _WIDER.items():
        if narrow in found:
            found.pop(wide, None)
    if not found:
        raise _nothing(files, list(looked.values()))
    candidates = "; ".join(f"{name} ({look.why})" for name, look in found.items())
    bases = dict.fromkeys(base for look in found.values() for base in look.bases)
    if len(bases) > 1:
        what = f"holds several data sets ({', '.join(bases)}): {candidates}"
        named = ", or name one with --layout" if len(found) > 1 else ""
        raise SourceError(files.name, f"{what}. Give one of these folders{named}")
    if len(found) > 1:
        raise SourceError(files.name, f"may be several layouts: {candidates}. Name one with --layout")
    (name, look), *_ = found.items()
    return Recognised(LAYOUTS[name], look.why)


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look for one layout found.

    Attributes:
        bases: folders that hold the layout's folders.
        why: by what the layout is known in one of them, `""` where it is not.
        error: why its folders cannot be found, or what it lacks.
    """

    bases: Sequence[str] = ()
    why: str = ""
    error: SourceError | None = None


def _look(files: Files, layout: Layout, lists_path: Path | None, depth: int) -> _Look:
    """Return what is found of a layout."""
    bases: list[str] = []
    error = None
    try:
        bases = find_bases(files, layout, depth)
        for base in bases:
            if why := _signs(files, layout, lists_path, base):
                return _Look(bases, why)
    except SourceUnreachableError:
        raise
    except SourceError as lacking:
        error = lacking
    return _Look(bases, error=error)


def _nothing(files: Files, looked: list[_Look]) -> SourceError:
    """Return what to say where no layout is known."""
    for one in looked:
        if len(one.bases) > 1:
            where = ", ".join(one.bases)
            return SourceError(files.name, f"holds several data sets ({where}); give one of these folders")
    for one in looked:
        if one.error is not None and not isinstance(one.error, LayoutNotFoundError):
            return one.error  # the wrong one of two sets, or no lists
    if all(isinstance(one.error, LayoutNotFoundError) for one in looked):
        return LayoutNotFoundError(files.name, dict.fromkeys(_folders()), files.folders(""))
    known = ", ".join(LAYOUTS)
    return SourceError(files.name, f"folders and names are of no known layout. Name one with --layout: {known}")


def _folders() -> Iterator[str]:
    for layout in LAYOUTS.values():
        yield from layout.folders


def _signs(files: Files, layout: Layout, lists_path: Path | None, base: str) -> str:
    """Return by what a layout is known in the folder `base`; `""` where it is not.

    Raises:
        SourceError: nothing but its lists is missing, or there is no folder of lists at `lists_path`.
    """
    prefix = f"{base}/" if base else ""
    names = [name for folder in layout.folders for name in _images(files, f"{prefix}{folder}")]
    known = [name for name in names if layout.parse_name(split_suffix(name)[0].rpartition("/")[2])]
    if not known or 2 * len(known) <= len(names):
        return ""
    signs = [f"names like {known[0].removeprefix(prefix)}"]
    if layout.lists is not None:
        place = ListPlace(files, prefix) if lists_path is None else ListPlace(open_place(lists_path), "")
        if there := place.there(layout.lists):
            signs.append(f"lists {', '.join(there)}")
        elif layout.lists.are_needed:
            lists = ", ".join(layout.lists.files)
            what = f"folders and names fit {layout.name}, but none of its lists {lists} is there"
            raise SourceError(files.name, f"{what}; name their folder with --lists")
        elif layout.word not in (name := variant_of(files, base)):
            return ""
        else:
            signs.append(f"a folder called {name}")
    missing = [mark for mark in layout.marks if mark.rpartition("/")[2] not in _siblings(files, prefix + mark)]
    if missing:
        return ""
    signs += [f"a folder {mark}" for mark in layout.marks]
    if layout.variants and variant_of(files, base) == layout.variants[0]:
        signs.append(f"a folder called {layout.variants[0]}")
    return ", ".join(signs)


def _images(files: Files, folder: str) -> Iterator[str]:
    return islice((path for path in files.below(folder) if is_image_suffix(split_suffix(path)[1])), _NUM_NAMES)


def _siblings(files: Files, path: str) -> list[str]:
    return files.folders(path.rpartition("/")[0])
