"""Is a packed data set what its manifest says? Every file, every row, every image."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from entire_id.errors import ManifestError
from entire_id.records import CAMERAS_FILE, PART_OF_SPLIT, Person, Progress, no_progress
from entire_id.shards.check import (
    Checked,
    Kind,
    Problem,
    ShardCheck,
    check_file,
    check_shard,
    read_meta,
)
from entire_id.shards.configs import loading_rules, render_readme
from entire_id.shards.engine import run_tasks
from entire_id.shards.findings import Findings, Mode, remember_findings
from entire_id.shards.manifest import MANIFEST_FILE, README_FILE, FileEntry, Manifest, read_manifest
from entire_id.shards.plan import Hashes

__all__ = ["Kind", "Problem", "VerifyReport", "check_all", "verify"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        problems: everything that is wrong; empty for a sound data set.
        rows: rows that were checked.
        queries_without_positive: queries whose person is in the gallery under no other camera: never scored.
        shared_pids: pid numbers that stand in both parts. They are two people each: train may count from 0 again.
        duplicate_images: images (by checksum) that occur more than once within a part.
        num_resumed: shards that an interrupted run had checked; reports are equal whatever it is.
    """

    problems: tuple[Problem, ...]
    rows: int
    queries_without_positive: int
    shared_pids: int
    duplicate_images: int
    num_resumed: int = field(default=0, compare=False)


def verify(
    folder: str | Path, progress: Progress = no_progress, *, quick: bool = False, decode: bool = False, jobs: int = 1
) -> VerifyReport:
    """Check the data set in `folder`: manifest = files = meta, every image against its checksum, the rules of the set.

    A run that was interrupted left its findings in `<folder>.verifying`, and the same call goes on with them: shards
    whose files were not touched since are not read again. Where that file cannot be written, nothing is remembered.

    Args:
        folder: a packed data set.
        progress: told how far it is.
        quick: compare the files' sizes and digests, and the labels, but do not look into the shards.
        decode: decode every image, too; about 150 µs each.
        jobs: processes that check shards; see `engine.run_tasks`.

    Raises:
        DatasetNotFoundError: no manifest lies there.
        WorkerDiedError: a worker process was killed.
    """
    folder, mode = Path(folder), Mode(quick, decode)
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        return VerifyReport((Problem(Kind.MANIFEST, MANIFEST_FILE, str(error)),), 0, 0, 0, 0)
    with remember_findings(folder, manifest, mode) as findings:
        return check_all(folder, manifest, mode, findings, progress, jobs)


def check_all(
    folder: Path, manifest: Manifest, mode: Mode, findings: Findings, progress: Progress, jobs: int
) -> VerifyReport:
    """Check the data set whose manifest is known; shards that have a finding which still holds are not read again."""
    problems = [*_check_listing(folder, manifest), *_check_placement(manifest)]
    checked = []
    num_rows = num_bytes = 0
    num_found = len(problems)
    entries = manifest.entries
    tasks = _tasks(folder, manifest, mode, findings, entries)
    with closing(run_tasks(check_shard, tasks, jobs)) as shards:
        for one in shards:
            findings.add(one)
            checked.append(one)
            num_rows += one.shard.rows
            num_bytes += entries[one.shard.path].bytes + entries[one.shard.meta_path].bytes
            num_found += len(one.problems)
            progress("verifying", num_rows, manifest.num_rows, f"{num_bytes / 1e9:.1f} GB, {num_found:,} problems")
    for one in checked:
        problems += one.problems
    problems += [*_check_keys(folder, checked), *_check_leaks(folder, checked)]
    return VerifyReport(
        problems=tuple(problems),
        rows=sum(len(one.keys) for one in checked),
        queries_without_positive=_count_unscored_queries(checked),
        shared_pids=_count_shared_pids(checked),
        duplicate_images=_count_duplicate_images(checked),
        num_resumed=sum(one.resumed for one in checked),
    )


def _tasks(
    folder: Path, manifest: Manifest, mode: Mode, findings: Findings, entries: Mapping[str, FileEntry]
) -> Iterator[ShardCheck]:
    for shard in manifest.shards:
        yield ShardCheck(
            folder=folder,
            shard=shard,
            files=(entries[shard.path], entries[shard.meta_path]),
            format=manifest.format,
            quick=mode.quick,
            decode=mode.decode,
            earlier=findings.known.get(shard.path),
        )


# --- files ------------------------------------------------------------------------------------------------------------


def _check_listing(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Compare the files that are there with those that are listed; look into those that are no shards."""
    listed = manifest.entries
    found = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    for path in sorted(found - listed.keys() - {MANIFEST_FILE, README_FILE}):
        printable = os.fsencode(path).decode(errors="backslashreplace")
        yield Problem(Kind.UNLISTED, printable, "the manifest does not know it")
    yield from check_file(folder, listed[CAMERAS_FILE])
    yield from _check_readme(folder / README_FILE, render_readme(manifest))
    yield from _check_cameras(folder / CAMERAS_FILE, listed[CAMERAS_FILE].rows)


def _check_readme(path: Path, expected: str) -> Iterator[Problem]:
    if not path.is_file():
        yield Problem(Kind.MISSING, README_FILE, "plain `datasets` finds no splits without it")
        return
    try:
        found = path.read_text("utf-8", errors="replace")
    except OSError as error:
        yield Problem(Kind.UNREADABLE, README_FILE, error.strerror or str(error))
        return
    if found != expected and loading_rules(found) != loading_rules(expected):
        yield Problem(Kind.README, README_FILE, "its configs or dataset_info are not those of the manifest")


def _check_cameras(path: Path, expected_rows: int) -> Iterator[Problem]:
    if path.is_file():
        try:
            rows = len(list(csv.DictReader(io.StringIO(path.read_text("utf-8", errors="replace")))))
        except OSError:  # reported already
            return
        except csv.Error as error:
            yield Problem(Kind.UNREADABLE, CAMERAS_FILE, str(error))
            return
        if rows != expected_rows:
            yield Problem(Kind.ROWS, CAMERAS_FILE, f"{rows} cameras, the manifest says {expected_rows}")


def _check_placement(manifest: Manifest) -> Iterator[Problem]:
    """A person lies in one shard per split and continent, and a shard has as many rows as its files."""
    for shard in manifest.shards:
        for path in (shard.path, shard.meta_path):
            if (rows := manifest.entries[path].rows) != shard.rows:
                yield Problem(Kind.ROWS, path, f"listed with {rows} rows, its shard with {shard.rows}")
    seen: dict[tuple[str, str, int], str] = {}
    for shard in manifest.shards:
        for pid in shard.pids:
            first = seen.setdefault((shard.split, shard.continent, pid), shard.path)
            if first != shard.path:
                person = Person(PART_OF_SPLIT[shard.split], pid)
                yield Problem(Kind.PLACE, shard.path, f"person {person} is in {first} too")


# --- across shards ----------------------------------------------------------------------------------------------------


def _check_keys(folder: Path, checked: list[Checked]) -> Iterator[Problem]:
    hashes = _sorted([one.keys for one in checked])
    counts: Counter[str] = Counter()
    for rows, hits in _suspects(folder, checked, "keys", np.unique(hashes[1:][hashes[1:] == hashes[:-1]])):
        counts.update(rows["key"].take(hits).to_pylist())
    for key, number in counts.items():
        if number > 1:
            yield Problem(Kind.KEY, key, "more than one row has this key")


def _check_leaks(folder: Path, checked: list[Checked]) -> Iterator[Problem]:
    train, test = _by_part(checked)
    known = _sorted([one.images for one in train])
    found = [one.images[_is_in(one.images, known)] for one in test]
    both = np.unique(_sorted(found))
    in_train: set[str] = set()
    for rows, hits in _suspects(folder, train, "images", both):
        in_train.update(rows["xxh3"].take(hits).to_pylist())
    for rows, hits in _suspects(folder, test, "images", both):
        for key, digest in zip(*(rows[name].take(hits).to_pylist() for name in ("key", "xxh3")), strict=True):
            if digest in in_train:
                yield Problem(Kind.LEAK, key, f"the same image ({digest}) is in the train part")


def _suspects(
    folder: Path, checked: list[Checked], column: str, hashes: Hashes
) -> Iterator[tuple[pa.Table, npt.NDArray[np.intp]]]:
    """Yield the meta file of every shard that has one of the sorted `hashes`, and in which of its rows.

    Equal hashes are a reason to look at the texts, and no more.
    """
    for one in checked:
        values: Hashes = getattr(one, column)
        hits = np.flatnonzero(_is_in(values, hashes))
        if len(hits):
            meta = read_meta(folder / one.shard.meta_path)
            if meta is not None and len(meta) == len(values):  # else it was changed in between
                yield meta, hits


def _sorted(parts: Iterable[Hashes]) -> Hashes:
    hashes = np.concatenate([np.empty(0, np.uint64), *parts])
    hashes.sort()
    return hashes


def _is_in(values: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    """Tell which of `values` are among `known`, which are sorted. `np.isin` would take several times the memory."""
    if not len(known):
        return np.zeros(len(values), bool)
    position = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[position] == values
    return found


def _by_part(checked: list[Checked]) -> tuple[list[Checked], list[Checked]]:
    """Return the shards of train and those of test."""
    is_train = [PART_OF_SPLIT[one.shard.split] == "train" for one in checked]
    pairs = list(zip(checked, is_train, strict=True))
    return [one for one, train in pairs if train], [one for one, train in pairs if not train]


def _count_unscored_queries(checked: list[Checked]) -> int:
    """Return how many queries have no crop of their person in the gallery under another camera."""
    gallery = [one.views for one in checked if one.shard.split == "gallery"]
    seen = np.unique(np.concatenate([np.empty(0, np.int64), *gallery]))
    people, num_cameras = np.unique(seen[seen >= 0] >> 32, return_counts=True)
    cameras_of = dict(zip(people.tolist(), num_cameras.tolist(), strict=True))
    unscored = 0
    for one in (one for one in checked if one.shard.split == "query"):
        own = np.isin(one.views, seen)
        views = zip((one.views >> 32).tolist(), own.tolist(), one.num_views.tolist(), strict=True)
        unscored += sum(number for pid, is_own, number in views if cameras_of.get(pid, 0) - is_own <= 0)
    return unscored


def _count_shared_pids(checked: list[Checked]) -> int:
    pids = [{pid for one in part for pid in (one.views >> 32).tolist() if pid >= 0} for part in _by_part(checked)]
    return len(pids[0] & pids[1])


def _count_duplicate_images(checked: list[Checked]) -> int:
    hashes = [_sorted([one.images for one in part]) for part in _by_part(checked)]
    return sum(int((part[1:] == part[:-1]).sum()) for part in hashes)
