"""The records that pass between the parts: plain values, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

__all__ = [
    "CAMERAS_FILE",
    "DISTRACTOR_PID",
    "JUNK_PID",
    "NO_NUMBER",
    "PART_OF_SPLIT",
    "SPLITS",
    "UNKNOWN_CONTINENT",
    "Camera",
    "Person",
    "Progress",
    "RawFile",
    "Reason",
    "Rejected",
    "Sample",
    "Source",
    "is_safe_path",
    "is_utf8",
    "no_progress",
    "sample_key",
    "split_suffix",
]

SPLITS = ("train", "val", "query", "gallery")
"""All splits, in the order in which they are listed everywhere."""

PART_OF_SPLIT = {"train": "train", "val": "train", "query": "test", "gallery": "test"}
"""Identities are numbered within a part: train and test may both hold a pid 17, who are two people."""

JUNK_PID = -1
"""The pid of junk, crops that no score counts; 0 is a person."""

DISTRACTOR_PID = -2
"""The pid of distractors that nobody has labelled: wrong for every query. Like junk they are no identity."""

NO_NUMBER = -1
"""`seq` and `frame` of sources that have none."""

UNKNOWN_CONTINENT = "unknown"

CAMERAS_FILE = "cameras.csv"
"""Where the owner describes the cameras: beside the raw crops, and in a packed data set."""


class Person(NamedTuple):
    """An identity: pids are unique within a part only. Written `test/17`."""

    part: str
    pid: int

    def __str__(self) -> str:
        return f"{self.part}/{self.pid}"


class Reason(StrEnum):
    """Why a file was not packed. The set is closed: every rejection names one of these."""

    NAME = "name"  # the file name does not follow the layout
    NUMBER = "number"  # a number in the name or table is out of range
    SPLIT = "split"  # the table names a split that does not exist
    OUTSIDE_SPLITS = "outside-splits"  # lies in no folder of the layout, or is on none of its lists
    NOT_AN_IMAGE = "not-an-image"  # neither the name nor the first bytes are those of a JPEG or PNG
    EMPTY = "empty"  # zero bytes
    TRUNCATED = "truncated"  # the image has no end
    CORRUPT = "corrupt"  # the image's header makes no sense
    TOO_LARGE = "too-large"  # more pixels or bytes than any crop has
    UNSAFE_PATH = "unsafe-path"  # absolute, or climbs out with ..
    LINK = "link"  # a symbolic link to a folder, out of the source, or to nowhere
    ENCODING = "encoding"  # the name is not UTF-8
    DUPLICATE_KEY = "duplicate-key"  # another file has the same name but for its ending
    CONTINENT = "continent"  # cameras.csv gives a continent that cannot name a config
    MISSING = "missing"  # listed, but not there any more
    UNREADABLE = "unreadable"  # the system refuses to read it
    ERASED = "erased"  # its person, its key or its image was taken out for good


class Sample(NamedTuple):
    """One crop as a source found it. A tuple, for there are millions.

    Attributes:
        folder: what the paths of a split's crops start with, `""` or ending in `/`.
        name: path below `folder`.
        split: one of `SPLITS`.
        pid: identity number as published, ≥ 0; -1 is junk, -2 a distractor without a label.
        camid: camera number as the source prints it, ≥ 0.
        seq: sequence number; -1 where the source has none.
        frame: frame number; -1 where the source has none.
        continent: slug of the camera's continent, `unknown` where nobody says.
    """

    folder: str
    name: str
    split: str
    pid: int
    camid: int
    seq: int = NO_NUMBER
    frame: int = NO_NUMBER
    continent: str = UNKNOWN_CONTINENT

    @property
    def path(self) -> str:
        """Where the source finds its bytes, `/`-separated."""
        return self.folder + self.name

    @property
    def key(self) -> str:
        """Its name in the data set; see `sample_key`."""
        return sample_key(self.split, self.name)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that was not packed, and why."""

    path: str
    reason: Reason
    detail: str = ""


class RawFile(NamedTuple):
    """The bytes of one file, and its `Source.stamp` when they were read; `()` where reading does not tell."""

    data: bytes
    stamp: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Camera:
    """One line of `cameras.csv`.

    Attributes:
        camid: camera number.
        continent: slug, or None where the file names a continent that cannot name a config.
        columns: every column of the line as the owner wrote it, camid and continent included.
    """

    camid: int
    continent: str | None
    columns: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Raw crops: what packing needs to know of a folder, a zip or a table."""

    @property
    def name(self) -> str:
        """Where the crops lie, for messages."""

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """Cameras by camid; empty where nobody described them."""

    def samples(self) -> Iterator[Sample | Rejected]:
        """Every file once, in any order; more than once only where it is a crop of several splits."""

    def read(self, path: str) -> RawFile:
        """One file.

        Raises:
            OSError: it cannot be read; EFBIG where no crop is as large.
            SourceChangedError: it is gone, or was written to while it was read.
        """

    def stamp(self, path: str) -> tuple[int, ...]:
        """Numbers that differ once another file stands there or its bytes have changed.

        The first is when the file last changed, in nanoseconds since 1970. Raises OSError where it is gone.
        """


class Progress(Protocol):
    """Told how far a long step is: what it does, how many are done, how many there are (0: not known yet), and more."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Called often; must be cheap."""


def no_progress(stage: str, done: int, total: int, note: str = "") -> None:
    """Tell nobody."""


def split_suffix(name: str) -> tuple[str, str]:
    """Return `name` without its last file ending, and the ending.

    >>> split_suffix("a.b/c.d.jpg"), split_suffix("a.b/c"), split_suffix(".jpg")
    (('a.b/c.d', '.jpg'), ('a.b/c', ''), ('.jpg', ''))
    """
    stem, dot, suffix = name.rpartition(".")
    if not stem or not suffix or "/" in suffix or stem.endswith("/"):
        return name, ""
    return stem, dot + suffix


def sample_key(split: str, name: str) -> str:
    """Return `<split>/<name without its ending>`, without dots, one-to-one: `%` → `%25`, `.` → `%2E`.

    WebDataset readers take everything after the first dot of a name for its ending.

    >>> sample_key("gallery", "a.b%c.jpg")
    'gallery/a%2Eb%25c'
    """
    stem = split_suffix(name)[0]
    if "%" in stem or "." in stem:
        stem = stem.replace("%", "%25").replace(".", "%2E")
    return f"{split}/{stem}"


def is_safe_path(path: str) -> bool:
    """Tell whether `path` stays below the folder it is resolved in: relative, no `..`, no backslash, no NUL.

    >>> is_safe_path("query/a.jpg"), is_safe_path("../a.jpg"), is_safe_path("/a.jpg"), is_safe_path("C:/a.jpg")
    (True, False, False, False)
    """
    if not path or "\\" in path or "\0" in path or path[1:2] == ":":
        return False
    return not path.startswith("/") and ".." not in path.split("/")


def is_utf8(name: str) -> bool:
    """Tell whether a name from the file system is text: surrogates stand for bytes that are not UTF-8."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
