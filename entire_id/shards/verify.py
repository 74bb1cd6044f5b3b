"""Is a packed data set what its manifest says? Every file, every row, every image."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from entire_id.errors import ManifestError
from entire_id.images import ImageSize, decoding_error, image_size
from entire_id.records import CAMERAS_FILE, PART_OF_SPLIT, Person, Progress, no_progress
from entire_id.schema import arrow_schema, meta_columns, shard_columns
from entire_id.shards import parquet, tar
from entire_id.shards.configs import loading_rules, render_readme
from entire_id.shards.manifest import (
    MANIFEST_FILE,
    README_FILE,
    FileEntry,
    Manifest,
    Shard,
    file_digest,
    read_manifest,
)
from entire_id.shards.write import ROW_GROUPS_KEY

__all__ = ["Kind", "Problem", "VerifyReport", "verify"]

_ROW_SCHEMA = pa.schema(
    [("split", pa.string()), ("key", pa.string()), ("pid", pa.int32()), ("camid", pa.int32()), ("xxh3", pa.string())]
)
ReadCrops = Callable[[Path], Iterator[tuple[list[bytes], list[str], pa.Table]]]
_READERS: dict[str, ReadCrops] = {"parquet": parquet.read_crops, "webdataset": tar.read_crops}


class Kind(StrEnum):
    """What can be wrong."""

    MANIFEST = "manifest"  # manifest.json is unreadable, or names a path outside the folder
    MISSING = "missing"  # the manifest lists the file, it is not there
    UNLISTED = "unlisted"  # the file is there, the manifest does not list it
    SIZE = "size"  # it has another size
    SHA256 = "sha256"  # it has other bytes
    UNREADABLE = "unreadable"  # no reader can open it
    SCHEMA = "schema"  # its columns are not those of the format
    ROWS = "rows"  # it has another number of rows, or another order
    IMAGE = "image"  # an image's bytes are not those of its checksum
    OFFSET = "offset"  # meta does not point at the image's bytes
    META = "meta"  # meta and shard disagree on a label
    PLACE = "place"  # a row lies in a shard of another split or continent, or a person in two shards
    KEY = "key"  # two rows have one key
    LEAK = "leak"  # one image is in both train and test
    README = "readme"  # README.md was not made from this manifest; plain `datasets` may serve other rows


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: its kind, where (a path relative to the folder, or a key), and what was found."""

    kind: Kind
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        problems: everything that is wrong; empty for a sound data set.
        rows: rows that were checked.
        queries_without_positive: queries whose person is in the gallery under no other camera: never scored.
        shared_pids: pid numbers that stand in both parts. They are two people each: train may count from 0 again.
        duplicate_images: images (by checksum) that occur more than once within a part.
    """

    problems: tuple[Problem, ...]
    rows: int
    queries_without_positive: int
    shared_pids: int
    duplicate_images: int


def verify(
    folder: str | Path, progress: Progress = no_progress, *, quick: bool = False, decode: bool = False
) -> VerifyReport:
    """Check the data set in `folder`: manifest = files = meta, every image against its checksum, the rules of the set.

    Args:
        folder: a packed data set.
        progress: told how far it is.
        quick: compare the files' sizes and digests, and the labels, but do not look into the shards.
        decode: decode every image, too; about 150 µs each.

    Raises:
        DatasetNotFoundError: no manifest lies there.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        return VerifyReport((Problem(Kind.MANIFEST, MANIFEST_FILE, str(error)),), 0, 0, 0, 0)
    problems = [*_check_listing(folder, manifest), *_check_placement(manifest)]
    entries = {entry.path: entry for entry in manifest.files}
    metas = [_ROW_SCHEMA.empty_table()]
    done = 0
    for shard in manifest.shards:
        for path in (shard.path, shard.meta_path):
            problems += _check_file(folder, entries[path])
        meta = _read_meta(folder, shard)
        if not quick:
            problems += _check_shard(folder, shard, meta, manifest.format, decode=decode)
        if meta is not None and (folder / shard.path).is_file():
            split = pa.repeat(pa.scalar(shard.split), len(meta))
            metas.append(meta.append_column("split", split).select(_ROW_SCHEMA.names).cast(_ROW_SCHEMA))
        done += shard.rows
        progress("verifying", done, manifest.num_rows)
    rows = pa.concat_tables(metas).combine_chunks()
    problems += [*_check_keys(rows), *_check_leaks(rows)]
    return VerifyReport(
        problems=tuple(problems),
        rows=len(rows),
        queries_without_positive=_count_unscored_queries(rows),
        shared_pids=_count_shared_pids(rows),
        duplicate_images=_count_duplicate_images(rows),
    )


def _check_listing(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Compare the files that are there with those that are listed; look into those that are no shards."""
    listed = {entry.path: entry for entry in manifest.files}
    found = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    for path in sorted(found - listed.keys() - {MANIFEST_FILE, README_FILE}):
        printable = os.fsencode(path).decode(errors="backslashreplace")
        yield Problem(Kind.UNLISTED, printable, "the manifest does not know it")
    yield from _check_file(folder, listed[CAMERAS_FILE])
    yield from _check_readme(folder / README_FILE, render_readme(manifest))
    yield from _check_cameras(folder / CAMERAS_FILE, listed[CAMERAS_FILE].rows)


def _check_readme(path: Path, expected: str) -> Iterator[Problem]:
    if not path.is_file():
        yield Problem(Kind.MISSING, README_FILE, "plain `datasets` finds no splits without it")
        return
    found = path.read_text("utf-8", errors="replace")
    if found != expected and loading_rules(found) != loading_rules(expected):
        yield Problem(Kind.README, README_FILE, "its configs or dataset_info are not those of the manifest")


def _check_cameras(path: Path, expected_rows: int) -> Iterator[Problem]:
    if path.is_file():
        try:
            rows = len(list(csv.DictReader(io.StringIO(path.read_text("utf-8", errors="replace")))))
        except csv.Error as error:
            yield Problem(Kind.UNREADABLE, CAMERAS_FILE, str(error))
            return
        if rows != expected_rows:
            yield Problem(Kind.ROWS, CAMERAS_FILE, f"{rows} cameras, the manifest says {expected_rows}")


def _check_file(folder: Path, entry: FileEntry) -> Iterator[Problem]:
    path = folder / entry.path
    if path.is_symlink() or not path.is_file():
        yield Problem(Kind.MISSING, entry.path, "listed, but no file is there")
    elif (size := path.stat().st_size) != entry.bytes:
        yield Problem(Kind.SIZE, entry.path, f"{size:,} bytes, expected {entry.bytes:,}")
    elif (digest := file_digest(path)) != entry.sha256:
        yield Problem(Kind.SHA256, entry.path, f"{digest[:12]}…, expected {entry.sha256[:12]}…")


def _read_meta(folder: Path, shard: Shard) -> pa.Table | None:
    try:
        meta = pq.read_table(folder / shard.meta_path, partitioning=None)
    except (OSError, pa.ArrowException):
        return None
    is_ours = meta.schema.equals(arrow_schema(meta_columns())) and not any(column.null_count for column in meta.columns)
    return meta if is_ours else None


def _check_shard(folder: Path, shard: Shard, meta: pa.Table | None, format_: str, *, decode: bool) -> Iterator[Problem]:
    """Compare a shard with its meta file, row by row. A missing file was reported already."""
    path, meta_path = folder / shard.path, folder / shard.meta_path
    if not path.is_file() or not meta_path.is_file():
        return
    if meta is None:
        yield Problem(Kind.SCHEMA, shard.meta_path, "unreadable, of other columns, or with nulls")
        return
    if len(meta) != shard.rows:
        yield Problem(Kind.ROWS, shard.meta_path, f"{len(meta)} rows, the manifest says {shard.rows}")
    if format_ == "parquet":
        try:
            if not pq.read_schema(path).equals(arrow_schema(shard_columns())):
                yield Problem(Kind.SCHEMA, shard.path, "its columns are not those of the format")
                return
        except (OSError, pa.ArrowException) as error:
            yield Problem(Kind.UNREADABLE, shard.path, str(error))
            return
    yield from _check_labels(shard, meta)
    yield from _check_images(folder, shard, meta, _READERS[format_], decode=decode)


def _check_labels(shard: Shard, meta: pa.Table) -> Iterator[Problem]:
    wrong = {
        "split": pc.invert(pc.starts_with(meta["key"], f"{shard.split}/")),
        "continent": pc.not_equal(meta["continent"], shard.continent),
        "shard": pc.not_equal(meta["shard"], shard.path),
    }
    for name, mask in wrong.items():
        for key in meta.filter(mask)["key"].to_pylist():
            yield Problem(Kind.PLACE, key, f"its {name} is not that of {shard.path}")
    pids = tuple(sorted(pid for pid in meta["pid"].unique().to_pylist() if pid >= 0))
    if pids != shard.pids:
        yield Problem(Kind.PLACE, shard.meta_path, "its people are not those that the manifest assigns to it")


def _check_images(
    folder: Path, shard: Shard, meta: pa.Table, read_crops: ReadCrops, *, decode: bool
) -> Iterator[Problem]:
    row = image_bytes = 0
    group_rows = []
    try:
        with (folder / shard.path).open("rb") as file:
            for images, names, labels in read_crops(folder / shard.path):
                part = meta.slice(row, len(images))
                yield from _compare_labels(shard, labels, part)
                yield from _compare_images(file.fileno(), images, names, part)
                if decode:
                    yield from _check_decoding(images, part)
                row += len(images)
                group_rows.append(len(images))
                image_bytes += sum(len(image or b"") for image in images)
    except (OSError, pa.ArrowException, tarfile.TarError, ValueError, KeyError) as error:
        yield Problem(Kind.UNREADABLE, shard.path, f"row {row}: {error}")
        return
    if row != len(meta):
        yield Problem(Kind.ROWS, shard.path, f"{row} rows, its meta file has {len(meta)}")
    if image_bytes != shard.image_bytes:
        yield Problem(Kind.ROWS, shard.path, f"{image_bytes:,} image bytes, the manifest says {shard.image_bytes:,}")
    recorded = _recorded_groups(meta)
    if sum(recorded) != row or (shard.path.endswith(".parquet") and recorded != group_rows):
        yield Problem(Kind.ROWS, shard.meta_path, "its row groups are not those of the shard")


def _recorded_groups(meta: pa.Table) -> list[int]:
    """Return the row-group sizes that a meta file records; none if they are no list of numbers."""
    try:
        groups = json.loads((meta.schema.metadata or {}).get(ROW_GROUPS_KEY, b""))
    except ValueError:
        return []
    return groups if isinstance(groups, list) and all(type(size) is int for size in groups) else []


def _compare_labels(shard: Shard, labels: pa.Table, meta: pa.Table) -> Iterator[Problem]:
    if len(labels) != len(meta):
        return  # reported once, as a number of rows
    for name in labels.column_names:
        if not labels[name].equals(meta[name]):
            different = pc.fill_null(pc.not_equal(labels[name], meta[name]), fill_value=True)
            for key in meta.filter(different)["key"].to_pylist():
                yield Problem(Kind.META, key, f"{name} differs between {shard.path} and its meta file")


def _compare_images(descriptor: int, images: list[bytes], names: list[str], meta: pa.Table) -> Iterator[Problem]:
    columns = (meta[name].to_pylist() for name in ("key", "xxh3", "width", "height", "offset", "length"))
    for image, name, key, digest, *size, offset, length in zip(images, names, *columns, strict=False):
        if image is None or not name or "/" in name:
            yield Problem(Kind.IMAGE, key, "no bytes, or no plain file name")
        elif xxhash.xxh3_64_hexdigest(image) != digest:
            yield Problem(Kind.IMAGE, key, f"its bytes are not those of checksum {digest}")
        elif image_size(image) != tuple(size):
            yield Problem(Kind.META, key, f"{size[0]} × {size[1]} px is not the size of the image")
        elif length != len(image) or offset < 0 or os.pread(descriptor, length, offset) != image:
            yield Problem(Kind.OFFSET, key, f"bytes {offset}..{offset + length} are not the image")


def _check_decoding(images: list[bytes], meta: pa.Table) -> Iterator[Problem]:
    labels = (meta[name].to_pylist() for name in ("key", "width", "height"))
    for image, key, width, height in zip(images, *labels, strict=False):
        if why := decoding_error(image or b"", ImageSize(width, height)):
            yield Problem(Kind.IMAGE, key, why)


def _check_placement(manifest: Manifest) -> Iterator[Problem]:
    """A person lies in one shard per split and continent, and a shard has as many rows as its files."""
    rows = {entry.path: entry.rows for entry in manifest.files}
    for shard in manifest.shards:
        for path in (shard.path, shard.meta_path):
            if rows[path] != shard.rows:
                yield Problem(Kind.ROWS, path, f"listed with {rows[path]} rows, its shard with {shard.rows}")
    seen: dict[tuple[str, str, int], str] = {}
    for shard in manifest.shards:
        for pid in shard.pids:
            first = seen.setdefault((shard.split, shard.continent, pid), shard.path)
            if first != shard.path:
                person = Person(PART_OF_SPLIT[shard.split], pid)
                yield Problem(Kind.PLACE, shard.path, f"person {person} is in {first} too")


def _check_keys(rows: pa.Table) -> Iterator[Problem]:
    counts = rows["key"].combine_chunks().value_counts()
    for key in counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist():
        yield Problem(Kind.KEY, key, "more than one row has this key")


def _in_train(rows: pa.Table) -> npt.NDArray[np.bool_]:
    train = [split for split, part in PART_OF_SPLIT.items() if part == "train"]
    mask: npt.NDArray[np.bool_] = pc.is_in(rows["split"], pa.array(train)).to_numpy(zero_copy_only=False)
    return mask


def _check_leaks(rows: pa.Table) -> Iterator[Problem]:
    train = pa.array(_in_train(rows))
    both = rows.filter(pc.and_(pc.is_in(rows["xxh3"], rows.filter(train)["xxh3"].unique()), pc.invert(train)))
    for key, digest in zip(both["key"].to_pylist(), both["xxh3"].to_pylist(), strict=True):
        yield Problem(Kind.LEAK, key, f"the same image ({digest}) is in the train part")


def _count_unscored_queries(rows: pa.Table) -> int:
    """Return how many queries have no crop of their person in the gallery under another camera."""
    split = rows["split"].to_numpy(zero_copy_only=False)
    pid, camid = rows["pid"].to_numpy().astype(np.int64), rows["camid"].to_numpy().astype(np.int64)
    is_gallery, is_query = (split == "gallery") & (pid >= 0), split == "query"
    seen = np.unique(pid[is_gallery] << 32 | camid[is_gallery])
    people, num_cameras = np.unique(seen >> 32, return_counts=True)
    cameras_of = dict(zip(people.tolist(), num_cameras.tolist(), strict=True))
    own = np.isin(pid[is_query] << 32 | camid[is_query], seen)
    others = [cameras_of.get(p, 0) - o for p, o in zip(pid[is_query].tolist(), own.tolist(), strict=True)]
    return sum(number <= 0 for number in others)


def _count_shared_pids(rows: pa.Table) -> int:
    train = _in_train(rows)
    pid = rows["pid"].to_numpy()
    return len(np.intersect1d(pid[train & (pid >= 0)], pid[~train & (pid >= 0)]))


def _count_duplicate_images(rows: pa.Table) -> int:
    train = _in_train(rows)
    digests = rows["xxh3"].to_numpy(zero_copy_only=False)
    return sum(len(part) - len(np.unique(part)) for part in (digests[train], digests[~train]) if len(part))
