"""Crops in a folder or zip whose names say who, where and when: the frame that a naming family fills in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from entire_id.errors import LayoutNotFoundError, SourceError
from entire_id.records import (
    CAMERAS_FILE,
    JUNK_PID,
    NO_NUMBER,
    UNKNOWN_CONTINENT,
    Camera,
    RawFile,
    Reason,
    Rejected,
    Sample,
    split_suffix,
)
from entire_id.sources.cameras import continent_slug, parse_cameras, read_cameras
from entire_id.sources.files import Files, ZipArchive, open_files
from entire_id.sources.remote import RemoteFiles

__all__ = ["IMAGE_SUFFIXES", "CropSource", "Layout", "NameParts", "build_sample"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_MAX_INT32, _MAX_INT64 = 2**31 - 1, 2**63 - 1


class NameParts(NamedTuple):
    """The numbers that a name holds."""

    pid: int
    camid: int
    seq: int = NO_NUMBER
    frame: int = NO_NUMBER


@dataclass(frozen=True, slots=True)
class Layout:
    """One naming family.

    Attributes:
        name: what `--layout` calls it.
        folders: top folder → split.
        parse_name: file name without ending → its numbers, None where it is no name of the family.
        example: a right name, for messages.
    """

    name: str
    folders: Mapping[str, str]
    parse_name: Callable[[str], NameParts | None]
    example: str


def build_sample(sample: Sample, continents: Mapping[int, str | None], named: str = "") -> Sample | Rejected:
    """Return the sample with its continent, or why its numbers or its continent cannot be packed.

    Args:
        sample: without continent.
        continents: camid → slug, None where `cameras.csv` gives one that cannot name a config.
        named: the continent that a table names for this crop; `""` leaves it to the camera.
    """
    folder, name, split, pid, camid, seq, frame, _ = sample
    for what, value, low, high in (
        ("pid", pid, JUNK_PID, _MAX_INT32),
        ("camid", camid, 0, _MAX_INT32),
        ("seq", seq, NO_NUMBER, _MAX_INT32),
        ("frame", frame, NO_NUMBER, _MAX_INT64),
    ):
        if not low <= value <= high:
            return Rejected(sample.path, Reason.NUMBER, f"{what} {value} is not in {low}..{high}")
    continent = continent_slug(named) if named else continents.get(camid, UNKNOWN_CONTINENT)
    if continent is None:
        who = f"the table's {named!r}" if named else f"that of camera {camid} in cameras.csv"
        return Rejected(sample.path, Reason.CONTINENT, f"{who} cannot name a config")
    return Sample(folder, name, split, pid, camid, seq, frame, continent)


class CropSource:
    """A tree of crops in one naming family; see `records.Source`."""

    def __init__(self, place: Path | str, layout: Layout, cameras_path: Path | None = None) -> None:
        """Find the layout's folders.

        Args:
            place: a folder or zip, or the URL of a folder; the layout's folders lie in it, or a few folders deeper.
            layout: naming family.
            cameras_path: `cameras.csv`; the one beside the layout's folders by default.

        Raises:
            LayoutNotFoundError: none of the layout's folders is there.
            CamerasFileError: `cameras.csv` is malformed.
        """
        self._files: Files = open_files(place) if isinstance(place, Path) else RemoteFiles(place)
        self._layout = layout
        base = _find_base(self._files, layout)
        self._prefix = f"{base}/" if base else ""
        own = self._prefix + CAMERAS_FILE
        self._cameras = read_cameras(cameras_path) if cameras_path else _own_cameras(self._files, own)

    @property
    def name(self) -> str:
        """Where the crops lie."""
        return self._files.name

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """Cameras by camid; empty without a `cameras.csv`."""
        return self._cameras

    def read(self, path: str) -> RawFile:
        """One file; see `records.Source`."""
        return self._files.read(path)

    def stamp(self, path: str) -> tuple[int, ...]:
        """What tells whether a file has changed; see `records.Source`."""
        return self._files.stamp(path)

    def samples(self) -> Iterator[Sample | Rejected]:
        """Every file once; `cameras.csv` is no crop and left out."""
        continents = {camera.camid: camera.continent for camera in self._cameras}
        own = self._prefix + CAMERAS_FILE
        for path in self._files.walk():
            if isinstance(path, Rejected):
                yield path
            elif path != own:
                yield self._sample(path, continents)

    def _sample(self, path: str, continents: Mapping[int, str | None]) -> Sample | Rejected:
        folder, _, name = path.removeprefix(self._prefix).partition("/")
        split = self._layout.folders.get(folder) if name and path.startswith(self._prefix) else None
        if split is None:
            return Rejected(path, Reason.OUTSIDE_SPLITS, f"not in {', '.join(self._layout.folders)}")
        stem, suffix = split_suffix(name)
        if suffix not in IMAGE_SUFFIXES and suffix.lower() not in IMAGE_SUFFIXES:
            return Rejected(path, Reason.NOT_AN_IMAGE, f"ending {suffix!r}")
        numbers = self._layout.parse_name(stem.rpartition("/")[2])
        if numbers is None:
            return Rejected(path, Reason.NAME, f"expected a name like {self._layout.example}")
        return build_sample(Sample(path.removesuffix(name), name, split, *numbers), continents)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _find_base(files: Files, layout: Layout, max_depth: int = 3) -> str:
    """Return the folder that holds the layout's folders: the top, or the only one that does at the least depth."""
    if _is_packed(files):  # it has folders called query, too
        raise LayoutNotFoundError(files.name, layout.folders, files.folders(""))
    level = [""]
    for _ in range(max_depth + 1):
        children = {folder: files.folders(folder) for folder in level}
        bases = [folder for folder, names in children.items() if not layout.folders.keys().isdisjoint(names)]
        if len(bases) > 1:
            raise SourceError(files.name, f"holds several data sets ({', '.join(bases)}); give one of these folders")
        if bases:
            return bases[0]
        level = [
            _join(folder, name)
            for folder, names in children.items()
            for name in names
            if name != "__MACOSX" and not name.startswith(".")
        ]
    raise LayoutNotFoundError(files.name, layout.folders, files.folders(""))


def _is_packed(files: Files) -> bool:
    return not isinstance(files, ZipArchive) and not isinstance(files.check("manifest.json"), Rejected)


def _own_cameras(files: Files, path: str) -> tuple[Camera, ...]:
    """Return the cameras of the `cameras.csv` among the crops; none where there is none that can be trusted."""
    if isinstance(files.check(path), Rejected):  # it will stand among the rejected files, unless it is missing
        return ()
    try:
        return parse_cameras(files.read(path).data, f"{files.name}/{path}")
    except OSError as error:
        raise SourceError(f"{files.name}/{path}", error.strerror or str(error)) from error
