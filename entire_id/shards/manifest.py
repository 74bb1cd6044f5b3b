"""`manifest.json`: what exists. Every reader starts there; nothing lists directories."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from entire_id.errors import DatasetNotFoundError, ManifestError
from entire_id.records import CAMERAS_FILE, PART_OF_SPLIT, SPLITS, Person, is_safe_path
from entire_id.schema import is_continent

__all__ = [
    "FORMATS",
    "MANIFEST_FILE",
    "README_FILE",
    "SCHEMA_VERSION",
    "VERSION",
    "FileEntry",
    "Manifest",
    "Shard",
    "SplitTotals",
    "check_digest",
    "content_digest",
    "file_digest",
    "parse_manifest",
    "read_manifest",
    "version_numbers",
]

MANIFEST_FILE = "manifest.json"
README_FILE = "README.md"
SCHEMA_VERSION = 1
"""Raised when a reader of the old version would misread the new."""

FORMATS = {"parquet": ".parquet", "webdataset": ".tar"}
"""Formats of shards and their endings."""

VERSION = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
"""A version of the content: three numbers."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the data set.

    Attributes:
        path: `/`-separated, relative to the data set's folder.
        rows: crops or cameras in it.
        bytes: its size.
        sha256: its digest, 64 hexadecimal digits.
    """

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard and who is in it.

    Attributes:
        split: its split.
        continent: its continent.
        path: the file with the pixels.
        meta_path: the file with everything else.
        rows: crops in it.
        num_bytes: size of its rows in memory (Arrow).
        meta_num_bytes: size of its meta rows in memory.
        image_bytes: size of the images alone.
        row_groups: rows of each of its row groups, in order; a tar has the same, though nothing shows them there.
        pids: identities in it, sorted; junk and distractors are none.
    """

    split: str
    continent: str
    path: str
    meta_path: str
    rows: int
    num_bytes: int
    meta_num_bytes: int
    image_bytes: int
    row_groups: tuple[int, ...]
    pids: tuple[int, ...]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Shard:
        """Return what `dataclasses.asdict` and JSON made of a shard.

        Raises:
            KeyError, TypeError: a field is missing, or there is one more.
        """
        return cls(**{**fields, **{name: tuple(fields[name]) for name in ("row_groups", "pids")}})


@dataclass(frozen=True, slots=True)
class SplitTotals:
    """What one split holds.

    Attributes:
        rows: crops, junk and distractors included.
        people: identities.
        image_bytes: size of the images.
    """

    rows: int
    people: int
    image_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a packed data set holds.

    Attributes:
        name: of the data set.
        version: semantic version of the content, `1.2.0`.
        format: `parquet` or `webdataset`.
        seed: key of the hashes that placed the rows.
        shard_rows: target size of a shard.
        shards: all shards, in the order of splits, continents and numbers.
        files: every file but README.md and manifest.json, sorted by path.
        schema_version: of this layout.
    """

    name: str
    version: str
    format: str
    seed: int
    shard_rows: int
    shards: tuple[Shard, ...]
    files: tuple[FileEntry, ...]
    schema_version: int = SCHEMA_VERSION

    def __getstate__(self) -> dict[str, Any]:
        """Only the fields: what is made of them need not travel."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def entries(self) -> dict[str, FileEntry]:
        """The files by path; it is made once."""
        return {entry.path: entry for entry in self.files}

    @property
    def content_sha256(self) -> str:
        """Digest of everything but README.md and manifest.json."""
        return content_digest(self.files)

    @property
    def splits(self) -> dict[str, SplitTotals]:
        """Totals of every split that has rows, in the usual order."""
        return {split: self._totals(split) for split in SPLITS if any(shard.split == split for shard in self.shards)}

    @property
    def continents(self) -> tuple[str, ...]:
        """Continents that have rows, sorted."""
        return tuple(sorted({shard.continent for shard in self.shards}))

    def people(self, continent: str | None = None) -> set[Person]:
        """Return the identities of both parts, or those with crops of a continent."""
        return {
            Person(PART_OF_SPLIT[shard.split], pid)
            for shard in self.shards
            if continent in (None, shard.continent)
            for pid in shard.pids
        }

    @property
    def num_rows(self) -> int:
        """Crops in all splits."""
        return sum(shard.rows for shard in self.shards)

    def _totals(self, split: str) -> SplitTotals:
        shards = [shard for shard in self.shards if shard.split == split]
        people = {pid for shard in shards for pid in shard.pids}
        return SplitTotals(sum(s.rows for s in shards), len(people), sum(s.image_bytes for s in shards))

    def to_json(self) -> str:
        """Return the text of `manifest.json`: equal manifests give equal text."""
        fields = {
            "schema_version": self.schema_version,
            "name": self.name,
            "version": self.version,
            "content_sha256": self.content_sha256,
            "format": self.format,
            "seed": self.seed,
            "shard_rows": self.shard_rows,
            "totals": {split: asdict(total) for split, total in self.splits.items()},
            "shards": [asdict(shard) for shard in self.shards],
            "files": [asdict(entry) for entry in self.files],
        }
        lines = [f" {json.dumps(name)}: {_one_a_line(value)}" for name, value in fields.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _one_a_line(value: object) -> str:
    """Return JSON with the items of a list a line each, so that a diff shows what changed."""
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in value) + "\n ]"


def version_numbers(version: str) -> tuple[int, int, int]:
    """Return the three numbers of a version, by which versions are in order.

    >>> version_numbers("1.10.0") > version_numbers("1.9.0")
    True
    """
    major, minor, patch = map(int, version.split("."))
    return major, minor, patch


def content_digest(files: Iterable[FileEntry]) -> str:
    """Return the SHA-256 over the sorted paths and digests of `files`, 64 hexadecimal digits."""
    lines = sorted(f"{entry.path}\0{entry.sha256}\n" for entry in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(folder: Path, entry: FileEntry) -> Path:
    """Return where a file of the data set in `folder` lies.

    Raises:
        ManifestError: it is not the file that the manifest lists.
    """
    path = folder / entry.path
    try:
        found = file_digest(path)
    except OSError as error:
        raise ManifestError(path, f"cannot be read ({error.strerror or error})", folder) from error
    if found != entry.sha256:
        raise ManifestError(path, "its bytes are not those of the manifest", folder)
    return path


def read_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of the data set in `folder`.

    Raises:
        DatasetNotFoundError: no manifest lies there.
        ManifestError: it is no manifest of a version that this package reads, contradicts itself, or names a path that
            leads out of the folder.
    """
    folder = Path(folder)
    try:
        data = (folder / MANIFEST_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetNotFoundError(folder, _why_not(folder)) from error
    except OSError as error:
        raise ManifestError(folder / MANIFEST_FILE, error.strerror or str(error), folder) from error
    return parse_manifest(data, folder / MANIFEST_FILE, folder)


def parse_manifest(data: bytes, path: str | Path, folder: str | Path | None = None) -> Manifest:
    """Return the manifest that the bytes of a `manifest.json` hold.

    Args:
        data: the file's bytes.
        path: where they came from, for messages.
        folder: the data set, where it is a folder of this machine.

    Raises:
        ManifestError: see `read_manifest`.
    """
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise ManifestError(path, f"no JSON ({error})", folder) from error
    if not isinstance(fields, dict) or fields.get("schema_version") != SCHEMA_VERSION:
        found = fields.get("schema_version") if isinstance(fields, dict) else None
        raise ManifestError(path, f"schema version {found!r}; this package reads {SCHEMA_VERSION}", folder)
    try:
        manifest = _from_json(fields)
    except (KeyError, TypeError) as error:
        raise ManifestError(path, f"malformed ({error})", folder) from error
    for problem in itertools.chain(_wrong_types(manifest), _contradictions(manifest, fields)):
        raise ManifestError(path, problem, folder)
    return manifest


def _why_not(folder: Path) -> str:
    if not folder.exists():
        return "no such folder"
    return f"no {MANIFEST_FILE} in it" if folder.is_dir() else "not a folder"


def _from_json(fields: dict[str, Any]) -> Manifest:
    shards = tuple(map(Shard.from_json, fields["shards"]))
    files = tuple(FileEntry(**entry) for entry in fields["files"])
    names = ("name", "version", "format", "seed", "shard_rows", "schema_version")
    return Manifest(**{name: fields[name] for name in names}, shards=shards, files=files)


def _wrong_types(manifest: Manifest) -> Iterator[str]:
    """Yield what in a manifest is of another type than its field."""
    records: list[Manifest | Shard | FileEntry] = [*manifest.shards, *manifest.files, manifest]
    for record in records:
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if not _is_of(str(field.type), value):
                yield f"{field.name} is {value!r}, expected {field.type}"


def _is_of(kind: str, value: object) -> bool:
    """Tell whether a JSON value is of a field's type; no number in a manifest is negative."""
    match kind:
        case "str":
            return isinstance(value, str)
        case "int":
            return type(value) is int and value >= 0
        case "tuple[int, ...]":
            # Many thousands of numbers: a set of types is quicker than a question for each.
            return isinstance(value, tuple) and {*map(type, value)} <= {int} and min(value, default=0) >= 0
        case _:
            return True


def _contradictions(manifest: Manifest, fields: dict[str, Any]) -> Iterator[str]:
    """Yield what in a well-formed manifest cannot be."""
    if manifest.content_sha256 != fields.get("content_sha256"):
        yield "its content_sha256 is not the digest of the files it lists; it was edited"
    if manifest.format not in FORMATS:
        yield f"format {manifest.format!r} is none of {', '.join(FORMATS)}"
    if not VERSION.fullmatch(manifest.version):
        yield f"version {manifest.version!r} is not of the form 1.2.0"
    if unsafe := [entry.path for entry in manifest.files if not is_safe_path(entry.path)]:
        yield f"{unsafe[0]!r} leads out of the folder"
    if not manifest.shards:
        yield "it lists no shard"
    for shard in manifest.shards:
        yield from _shard_contradictions(shard)
    placed = {path for shard in manifest.shards for path in (shard.path, shard.meta_path)} | {CAMERAS_FILE}
    listed = {entry.path for entry in manifest.files}
    for name in sorted(placed ^ listed):
        yield f"{name!r} is not among the files" if name in placed else f"{name!r} is a file of no shard"
    if fields.get("totals") != {split: asdict(total) for split, total in manifest.splits.items()}:
        yield "its totals are not those of its shards"


def _shard_contradictions(shard: Shard) -> Iterator[str]:
    if shard.split not in SPLITS or not is_continent(shard.continent):
        yield f"{shard.path!r} is in split {shard.split!r} and continent {shard.continent!r}"
    if sum(shard.row_groups) != shard.rows or 0 in shard.row_groups:
        yield f"the row groups of {shard.path!r} do not make up its {shard.rows:,} rows"
