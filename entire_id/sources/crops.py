"""Crops in a folder or zip whose names say who, where and when: the frame that a naming family fills in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from entire_id.errors import LayoutNotFoundError, SourceError
from entire_id.records import (
    CAMERAS_FILE,
    DISTRACTOR_PID,
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
from entire_id.sources.lists import Entry, ListPlace, Lists, read_entries
from entire_id.sources.official import Official
from entire_id.sources.remote import RemoteFiles

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_DEPTH",
    "CropSource",
    "Layout",
    "NameParts",
    "build_sample",
    "find_base",
    "find_bases",
    "is_image_suffix",
    "open_place",
    "variant_of",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
MAX_DEPTH = 3
"""How many folders deep a layout's folders may lie."""

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
        folders: top folder, or one below it as `test/query` → split.
        parse_name: file name without ending → its numbers, None where it is no name of the family.
        example: a right name, for messages.
        number: folder and numbers → the numbers to pack, where the folder has a say in them.
        others: files and folders beside these that come with the data set and hold no crop of a split.
        lists: which crops belong to which split, where lists say so.
        variants: what the folder that holds `folders` is called, then what that of the sister set is.
        marks: folders that tell it from a layout with the same names.
        word: of the name of the folder that holds `folders`, telling it from such a layout where lists do not.
        official: what the authors say it holds.
    """

    name: str
    folders: Mapping[str, str]
    parse_name: Callable[[str], NameParts | None]
    example: str
    number: Callable[[str, NameParts], NameParts] | None = None
    others: AbstractSet[str] = frozenset()
    lists: Lists | None = None
    variants: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    word: str = ""
    official: tuple[Official, ...] = ()


def build_sample(sample: Sample, continents: Mapping[int, str | None], named: str = "") -> Sample | Rejected:
    """Return the sample with its continent, or why its numbers or its continent cannot be packed.

    Args:
        sample: without continent.
        continents: camid → slug, None where `cameras.csv` gives one that cannot name a config.
        named: the continent that a table names for this crop; `""` leaves it to the camera.
    """
    folder, name, split, pid, camid, seq, frame, _ = sample
    for what, value, low, high in (
        ("pid", pid, DISTRACTOR_PID, _MAX_INT32),
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

    def __init__(
        self, place: Path | str, layout: Layout, cameras_path: Path | None = None, lists_path: Path | None = None
    ) -> None:
        """Find the layout's folders.

        Args:
            place: a folder or zip, or the URL of a folder; the layout's folders lie in it, or a few folders deeper.
            layout: naming family.
            cameras_path: `cameras.csv`; the one beside the layout's folders by default.
            lists_path: folder of the layout's lists; those beside its folders by default.

        Raises:
            LayoutNotFoundError: none of the layout's folders is there.
            CamerasFileError: `cameras.csv` is malformed.
            SourceError: the layout's lists are not there, or it has none.
        """
        self._files = open_place(place)
        self.layout = layout
        self._left_out: set[str] = set()
        base = find_base(self._files, layout)
        self._prefix = f"{base}/" if base else ""
        self._lists = self._find_lists(lists_path)
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

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the last `samples` met of the layout's `others`, and of a sister set."""
        return tuple(sorted(self._left_out))

    @property
    def has_lists(self) -> bool:
        """Whether lists say which crops belong to which split."""
        return self._lists is not None

    @property
    def missing_lists(self) -> tuple[str, ...]:
        """The layout's lists that are not there; without `has_lists` crops are taken as the folders have them."""
        lists = self.layout.lists
        there = self._lists.there(lists) if lists and self._lists else ()
        return tuple(name for name in lists.files if name not in there) if lists else ()

    def _find_lists(self, path: Path | None) -> ListPlace | None:
        lists = self.layout.lists
        if lists is None:
            if path is not None:
                raise SourceError(path, f"layout {self.layout.name!r} has no lists; leave --lists out")
            return None
        place = ListPlace(self._files, self._prefix) if path is None else ListPlace(open_files(path), "")
        if place.there(lists):
            return place
        if lists.are_needed or path is not None:
            names = ", ".join(lists.files)
            raise SourceError(place.files.name, f"none of the lists {names} is there; name their folder with --lists")
        return None

    def read(self, path: str) -> RawFile:
        """One file; see `records.Source`."""
        return self._files.read(path)

    def stamp(self, path: str) -> tuple[int, ...]:
        """What tells whether a file has changed; see `records.Source`."""
        return self._files.stamp(path)

    def samples(self) -> Iterator[Sample | Rejected]:
        """Every file, once but for those that are in several splits by the lists; see `records.Source`.

        `cameras.csv`, lists, and what comes with the data set are no crops and left out.
        """
        self._left_out = set()
        continents = {camera.camid: camera.continent for camera in self._cameras}
        if self._lists is not None and self.layout.lists is not None:
            yield from self._listed(self.layout.lists, self._lists, continents)
            return
        for path in self._walk():
            yield path if isinstance(path, Rejected) else self._sample(path, continents)

    def _walk(self) -> Iterator[str | Rejected]:
        """Every file but those that come with the data set and are no crops."""
        own = self._prefix + CAMERAS_FILE
        others = self.layout.others
        lists = {self._prefix + name for name in self.layout.lists.files} if self.layout.lists else frozenset()
        for path in self._files.walk():
            if isinstance(path, Rejected):
                yield path
            elif path == own or path in lists:
                continue
            elif others and path.startswith(self._prefix) and (top := self._below(path).partition("/")[0]) in others:
                self._left_out.add(top)
            elif self.layout.variants and (sister := self._sister(path)):
                self._left_out.add(sister)
            else:
                yield path

    def _sister(self, path: str) -> str:
        """Return the folder of the sister set, beside this one, that holds a file; `""` if none does."""
        beside = self._prefix[:-1].rpartition("/")[0]
        top = path.removeprefix(f"{beside}/" if beside else "").partition("/")[0]
        is_sister = self._prefix and not path.startswith(self._prefix) and top.casefold() in self.layout.variants[1:]
        return top if is_sister else ""

    def _below(self, path: str) -> str:
        return path.removeprefix(self._prefix)

    def _sample(self, path: str, continents: Mapping[int, str | None]) -> Sample | Rejected:
        folder, name = self._part(path)
        split = self.layout.folders.get(folder) if name else None
        if split is None:
            return Rejected(path, Reason.OUTSIDE_SPLITS, f"not in {', '.join(self.layout.folders)}")
        return self._build(path, name, split, folder, continents)

    def _part(self, path: str) -> tuple[str, str]:
        """Return the layout's folder that a file lies in, and its path below that; an empty path if in none."""
        if not path.startswith(self._prefix):
            return "", ""
        folder, _, name = self._below(path).partition("/")
        if name and folder not in self.layout.folders:
            second, _, name = name.partition("/")
            folder = f"{folder}/{second}"
        return folder, name

    def _build(
        self,
        path: str,
        name: str,
        split: str,
        folder: str,
        continents: Mapping[int, str | None],
        pid: int | None = None,
    ) -> Sample | Rejected:
        stem, suffix = split_suffix(name)
        if not is_image_suffix(suffix):
            return Rejected(path, Reason.NOT_AN_IMAGE, f"ending {suffix!r}")
        numbers = self.layout.parse_name(stem.rpartition("/")[2])
        if numbers is None:
            return Rejected(path, Reason.NAME, f"expected a name like {self.layout.example}")
        if pid is not None:
            numbers = NameParts(pid, *numbers[1:])
        if self.layout.number is not None:
            numbers = self.layout.number(folder, numbers)
        return build_sample(Sample(path.removesuffix(name), name, split, *numbers), continents)

    def _listed(
        self, lists: Lists, place: ListPlace, continents: Mapping[int, str | None]
    ) -> Iterator[Sample | Rejected]:
        """Every line of a list with the file that it takes, if one is there, and every file that no line takes."""
        entries, twice = read_entries(lists, place, self._prefix)
        yield from twice
        is_there = dict.fromkeys((path for entry in entries for path in entry.paths), False)
        for path in self._walk():
            if isinstance(path, Rejected):
                yield path
            elif path in is_there:
                is_there[path] = True
            else:
                yield self._unlisted(path, lists)
        taken = set()
        for entry in entries:
            path = next(filter(is_there.__getitem__, entry.paths), "")
            taken.add(path)
            yield self._take(path, entry, continents)
        for path, was_there in is_there.items():
            if was_there and path not in taken:
                yield self._unlisted(path, lists)

    def _take(self, path: str, entry: Entry, continents: Mapping[int, str | None]) -> Sample | Rejected:
        """Return the crop of a line, whose file is at `path`; `""` if there is none."""
        if not path:
            return Rejected(entry.paths[0], Reason.MISSING, f"{entry.list_name} names it")
        folder = self._below(path).removesuffix(f"/{entry.name}")
        return self._build(path, entry.name, entry.split, folder, continents, entry.pid)

    def _unlisted(self, path: str, lists: Lists) -> Rejected:
        found = self._sample(path, {})
        if isinstance(found, Rejected) and found.reason is not Reason.NAME:
            return found  # no list could make it a crop
        return Rejected(path, Reason.OUTSIDE_SPLITS, f"on none of the lists {', '.join(lists.files)}")


def open_place(place: Path | str) -> Files:
    """Return the tree of files at a path, or at the URL of a folder.

    Raises:
        SourceError: nothing readable is there.
    """
    return open_files(place) if isinstance(place, Path) else RemoteFiles(place)


def is_image_suffix(suffix: str) -> bool:
    """Tell whether files with this ending are taken for images."""
    return suffix in IMAGE_SUFFIXES or suffix.lower() in IMAGE_SUFFIXES


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def find_base(files: Files, layout: Layout) -> str:
    """Return the folder that holds the layout's folders: the top, or the only one that does at the least depth.

    Raises:
        LayoutNotFoundError: none does.
        SourceError: several do, or only that of the sister set.
    """
    bases = find_bases(files, layout)
    if len(bases) > 1:
        raise SourceError(files.name, f"holds several data sets ({', '.join(bases)}); give one of these folders")
    return bases[0]


def find_bases(files: Files, layout: Layout, max_depth: int = MAX_DEPTH) -> list[str]:
    """Return the folders that hold the layout's folders, all at the least depth at which one does.

    Raises:
        LayoutNotFoundError: none does.
        SourceError: only that of the sister set does.
    """
    tops = {folder.partition("/")[0] for folder in layout.folders}
    if _is_packed(files):  # it has folders called query, too
        raise LayoutNotFoundError(files.name, layout.folders, files.folders(""))
    level = [""]
    for _ in range(max_depth + 1):
        children = {folder: files.folders(folder) for folder in level}
        bases = [folder for folder, names in children.items() if not tops.isdisjoint(names)]
        bases = _of_variant(files, layout, bases)
        if bases:
            return bases
        level = [
            _join(folder, name)
            for folder, names in children.items()
            for name in names
            if name != "__MACOSX" and not name.startswith(".")
        ]
    raise LayoutNotFoundError(files.name, layout.folders, files.folders(""))


def variant_of(files: Files, base: str) -> str:
    """Return the name of the folder that holds a layout's folders, in small letters."""
    name = base or Path(files.name).resolve().name.removesuffix(".zip")
    return name.rpartition("/")[2].casefold()


def _of_variant(files: Files, layout: Layout, bases: list[str]) -> list[str]:
    if not layout.variants or not bases:
        return bases
    own, *others = layout.variants
    named = {base: variant_of(files, base) for base in bases}
    kept = [base for base in bases if named[base] == own] or [base for base in bases if named[base] not in others]
    if not kept:
        raise SourceError(files.name, f"holds {', '.join(bases) or named['']}, and not {own}; name another --layout")
    return kept


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
