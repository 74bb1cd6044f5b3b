"""What changed from one version to the next: shards, people, crops, and the bytes that an upload takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from entire_id.errors import ManifestError
from entire_id.records import PART_OF_SPLIT, SPLITS, Person
from entire_id.shards.manifest import Manifest, Shard, read_manifest

__all__ = ["SplitDiff", "VersionDiff", "diff_folders", "diff_manifests"]


@dataclass(frozen=True, slots=True)
class SplitDiff:
    """What changed in one split.

    Attributes:
        added: crops that only the new version has, by key.
        removed: crops that only the old version has.
        changed: crops of both whose bytes or labels differ.
    """

    added: int
    removed: int
    changed: int


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """What changed from one version to another.

    Attributes:
        old_version: version of the one.
        new_version: version of the other.
        shards_kept: shards with the same bytes in both.
        shards_changed: shards of both whose bytes differ.
        shards_added: shards that only the new version has.
        shards_removed: shards that only the old version has.
        people_added: identities that only the new version has.
        people_removed: identities that only the old version has.
        splits: changes of every split that has any; those of query and gallery change scores.
        upload_bytes: size of the new version's files that the old one has not.
    """

    old_version: str
    new_version: str
    shards_kept: int
    shards_changed: int
    shards_added: int
    shards_removed: int
    people_added: int
    people_removed: int
    splits: dict[str, SplitDiff]
    upload_bytes: int


def diff_folders(old: str | Path, new: str | Path) -> VersionDiff:
    """Return what changed from the data set in `old` to that in `new`; shards that are alike are not read.

    Raises:
        DatasetNotFoundError: no data set lies in one of them.
        ManifestError: one is damaged.
    """
    return diff_manifests(read_manifest(old), Path(old).joinpath, read_manifest(new), Path(new).joinpath)


def diff_manifests(
    old_set: Manifest, old_file: Callable[[str], Path], new_set: Manifest, new_file: Callable[[str], Path]
) -> VersionDiff:
    """Return what changed from one data set to another; shards that are alike are not read.

    Args:
        old_set: manifest of the one.
        old_file: gives a file of it, by its path, as one of this machine.
        new_set: manifest of the other.
        new_file: likewise.

    Raises:
        ManifestError: one is damaged.
        RepositoryNotFoundError: a file cannot be fetched.
    """
    old_files, new_files = ({entry.path: entry for entry in one.files} for one in (old_set, new_set))
    old_shards, new_shards = ({shard.path: shard for shard in one.shards} for one in (old_set, new_set))
    both = old_shards.keys() & new_shards.keys()
    kept = {path for path in both if old_files[path].sha256 == new_files[path].sha256}
    known = {entry.sha256 for entry in old_set.files}
    old_rows = _rows(old_file, (shard for path, shard in old_shards.items() if path not in kept))
    new_rows = _rows(new_file, (shard for path, shard in new_shards.items() if path not in kept))
    old_people, new_people = _people(old_set), _people(new_set)
    return VersionDiff(
        old_version=old_set.version,
        new_version=new_set.version,
        shards_kept=len(kept),
        shards_changed=len(both - kept),
        shards_added=len(new_shards.keys() - both),
        shards_removed=len(old_shards.keys() - both),
        people_added=len(new_people - old_people),
        people_removed=len(old_people - new_people),
        splits=_splits(old_rows, new_rows),
        upload_bytes=sum(entry.bytes for entry in new_set.files if entry.sha256 not in known),
    )


def _people(manifest: Manifest) -> set[Person]:
    return {Person(PART_OF_SPLIT[shard.split], pid) for shard in manifest.shards for pid in shard.pids}


def _rows(file: Callable[[str], Path], shards: Iterable[Shard]) -> dict[str, tuple[object, ...]]:
    """Return key → everything that a score may depend on, of the rows of `shards`."""
    rows: dict[str, tuple[object, ...]] = {}
    for shard in shards:
        try:
            meta = pq.read_table(file(shard.meta_path), partitioning=None)
            columns = [meta[name].to_pylist() for name in ("key", "pid", "camid", "continent", "seq", "frame", "xxh3")]
        except (OSError, KeyError, ValueError) as error:
            raise ManifestError(shard.meta_path, f"cannot be read ({error})") from error
        rows.update({row[0]: row[1:] for row in zip(*columns, strict=True)})
    return rows


def _splits(old: dict[str, tuple[object, ...]], new: dict[str, tuple[object, ...]]) -> dict[str, SplitDiff]:
    changed = {key for key in old.keys() & new.keys() if old[key] != new[key]}
    found = {
        split: SplitDiff(
            added=sum(key.startswith(f"{split}/") for key in new.keys() - old.keys()),
            removed=sum(key.startswith(f"{split}/") for key in old.keys() - new.keys()),
            changed=sum(key.startswith(f"{split}/") for key in changed),
        )
        for split in SPLITS
    }
    return {split: diff for split, diff in found.items() if diff != SplitDiff(0, 0, 0)}
