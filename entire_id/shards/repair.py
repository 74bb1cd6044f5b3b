"""Broken files of a packed data set → the same files anew, from the raw crops: nothing else is ever put in place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from entire_id.errors import EntireIdError, ManifestError, WriteFailedError
from entire_id.records import CAMERAS_FILE, Progress, Source, no_progress
from entire_id.shards.cameras import cameras_csv
from entire_id.shards.check import Kind, Problem, check_file, read_labels, read_meta
from entire_id.shards.configs import render_readme
from entire_id.shards.engine import run_tasks
from entire_id.shards.findings import Findings, Mode, remember_findings
from entire_id.shards.listing import Listing, RejectedLog, list_crops
from entire_id.shards.manifest import MANIFEST_FILE, README_FILE, Manifest, Shard, read_manifest
from entire_id.shards.placed import keys_of_nobody, placements, shard_number
from entire_id.shards.plan import Indices, Placement, PlannedShard, Rows, hash_keys, plan_shards
from entire_id.shards.restore import Restored, RestoreTask, restore_shard
from entire_id.shards.store import LocalStore
from entire_id.shards.verify import VerifyReport, check_all, verify
from entire_id.shards.write import ShardTask
from entire_id.staging import beside, sync, work_folder

__all__ = ["RepairReport", "Unrestored", "repair"]

_OTHER_BYTES = {Kind.MISSING, Kind.SIZE, Kind.SHA256}


@dataclass(frozen=True, slots=True)
class Unrestored:
    """A broken file that stays as it is, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did.

    Attributes:
        restored: files that are what the manifest says again.
        unrestored: files that could not be restored.
        old_readme: where the README lies that was replaced; None if none was.
        verified: what is wrong now.
    """

    restored: tuple[str, ...]
    unrestored: tuple[Unrestored, ...]
    old_readme: Path | None
    verified: VerifyReport


def repair(
    folder: str | Path,
    source: Source,
    progress: Progress = no_progress,
    *,
    quick: bool = False,
    decode: bool = False,
    jobs: int = 1,
) -> RepairReport:
    """Check the data set in `folder`, write its broken files anew from the raw crops, and check those again.

    A file is put in place only if it is, byte for byte, the one of which the manifest holds the digest; sound files are
    not touched. A README whose loading rules are wrong is replaced by that of the manifest, and kept beside the folder.

    Args:
        folder: a packed data set. Its manifest must be sound: it says what all other files are.
        source: the raw crops that it was packed from; files that packing rejected do no harm.
        progress: told how far it is.
        quick: look for broken files by sizes and digests alone.
        decode: decode every image in the check.
        jobs: processes that check and write shards; see `engine.run_tasks`.

    Raises:
        DatasetNotFoundError: no manifest lies there.
        SourceError: the source cannot be read as a whole.
        OutputExistsError: another run repairs the data set, or something stands where its work goes.
        WriteFailedError: the disk is full, or refuses.
        WorkerDiedError: a worker process was killed.
    """
    folder, mode = Path(folder), Mode(quick, decode)
    try:
        manifest = read_manifest(folder)
    except ManifestError:
        why = "it says what all other files are, so nothing can be restored without it: bring it back from a copy"
        return RepairReport((), (Unrestored(MANIFEST_FILE, why),), None, verify(folder))
    had_readme = os.path.lexists(folder / README_FILE)
    with remember_findings(folder, manifest, mode) as findings:  # kept if the restoring is interrupted
        report = check_all(folder, manifest, mode, findings, progress, jobs)
        broken = _broken(folder, manifest, report)
        outcome = _restore_all(folder, manifest, source, broken, progress, jobs) if broken else {}
    restored = tuple(path for path, why in outcome.items() if why is None)
    unrestored = tuple(Unrestored(path, why) for path, why in outcome.items() if why is not None)
    if restored:  # shards that were not touched need not be read again
        thorough = Mode(quick=False, decode=decode)
        again = check_all(folder, manifest, thorough, Findings(findings.known), progress, jobs)
        report = replace(again, num_resumed=report.num_resumed)
    old_readme = _old_readme(folder) if had_readme and README_FILE in restored else None
    return RepairReport(restored, unrestored, old_readme, report)


def _restore_all(
    folder: Path, manifest: Manifest, source: Source, broken: frozenset[str], progress: Progress, jobs: int
) -> dict[str, str | None]:
    """Put in place what can be restored; return each broken file with the reason why it was not, if so."""
    try:
        with work_folder(folder, ".repairing") as tree:
            return dict(_restore(_Bench(folder, manifest, source, broken, tree), progress, jobs))
    except OSError as error:
        if isinstance(error, EntireIdError):
            raise
        raise WriteFailedError(error.filename or folder, error.strerror or str(error)) from error


def _broken(folder: Path, manifest: Manifest, report: VerifyReport) -> frozenset[str]:
    """Return the files that have other bytes than the manifest says, and the README if it was made from another."""
    listed = manifest.entries

    def is_broken(problem: Problem) -> bool:
        if problem.where == README_FILE:
            return problem.kind in {Kind.MISSING, Kind.README}
        if problem.where not in listed:
            return False
        is_unreadable = problem.kind is Kind.UNREADABLE and any(check_file(folder, listed[problem.where]))
        return is_unreadable or problem.kind in _OTHER_BYTES

    return frozenset(problem.where for problem in report.problems if is_broken(problem))


@dataclass(frozen=True)
class _Bench:
    """What is repaired, from what, and where the work goes on."""

    folder: Path
    manifest: Manifest
    source: Source
    broken: frozenset[str]
    tree: Path

    def labels(self, shard: Shard) -> pa.Table | None:
        """Return a shard's labels from its meta file, or else its data file; None if neither is sound."""
        for path in (shard.meta_path, shard.path):
            if path not in self.broken:
                return read_labels(self.folder / path, "parquet" if path == shard.meta_path else self.manifest.format)
        return None


def _restore(bench: _Bench, progress: Progress, jobs: int) -> Iterator[tuple[str, str | None]]:
    """See `_restore_all`."""
    if README_FILE in bench.broken:
        yield README_FILE, _restore_readme(bench)
    if not bench.broken - {README_FILE}:
        return
    with RejectedLog(bench.tree / "rejected.csv", strict=False) as log:  # packing told of them
        listing = list_crops(bench.source, bench.manifest.seed, bench.tree / "listing", log, progress)
    if CAMERAS_FILE in bench.broken:
        yield CAMERAS_FILE, _restore_cameras(bench, listing)
    shards = [shard for shard in bench.manifest.shards if {shard.path, shard.meta_path} & bench.broken]
    with closing(run_tasks(restore_shard, _tasks(bench, shards, listing), jobs)) as results:
        for number, (shard, result) in enumerate(zip(shards, results, strict=True), 1):
            yield from _accept(bench, shard, result)
            progress("restoring", number, len(shards))


def _accept(bench: _Bench, shard: Shard, result: Restored) -> Iterator[tuple[str, str | None]]:
    for path in (shard.path, shard.meta_path):
        if path in bench.broken:
            yield path, _place(bench.folder, path, result.found[path]) if path in result.found else result.why


def _place(folder: Path, path: str, new: Path) -> str | None:
    """Give a file that is complete, and on the disk, its place; return why not, if so."""
    final = folder / path
    if not final.parent.resolve().is_relative_to(folder.resolve()):
        return "it lies behind a link that leads out of the folder"
    if final.is_dir() and not final.is_symlink():
        return "a folder stands in its place; move that away"
    final.parent.mkdir(parents=True, exist_ok=True)
    new.replace(final)
    sync(final.parent)
    return None


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    sync(path)
    return path


def _old_readme(folder: Path) -> Path:
    """Return where a README goes that is replaced: its prose is the owner's."""
    return beside(folder.resolve(), ".README.md.old")


def _restore_readme(bench: _Bench) -> str | None:
    if os.path.lexists(bench.folder / README_FILE):
        kept = _old_readme(bench.folder)
        if os.path.lexists(kept):
            return f"{str(kept)!r} is needed to keep the old one, and is there already: move that away"
        (bench.folder / README_FILE).rename(kept)
    return _place(bench.folder, README_FILE, _write(bench.tree / README_FILE, render_readme(bench.manifest).encode()))


def _restore_cameras(bench: _Bench, listing: Listing) -> str | None:
    text = cameras_csv(bench.source.cameras, listing.views).encode()
    if hashlib.sha256(text).hexdigest() != bench.manifest.entries[CAMERAS_FILE].sha256:
        return "it comes out differently: the cameras.csv or the crops of the source are not those that were packed"
    return _place(bench.folder, CAMERAS_FILE, _write(bench.tree / CAMERAS_FILE, text))


# --- which crops, in what order ---------------------------------------------------------------------------------------


def _tasks(bench: _Bench, shards: list[Shard], listing: Listing) -> Iterator[RestoreTask]:
    planner = _Planner(bench, shards, listing)
    entries = bench.manifest.entries
    for shard in shards:
        files = (entries[shard.path], entries[shard.meta_path])
        layouts = planner.layouts(shard)
        attempts = [_attempt(bench, shard, listing, *layout, number) for number, layout in enumerate(layouts)]
        yield RestoreTask(shard, files, bench.broken, bench.folder, tuple(attempts))


def _attempt(
    bench: _Bench, shard: Shard, listing: Listing, rows: Indices, group_stops: Indices, number: int
) -> ShardTask:
    return ShardTask(
        source=bench.source,
        rows=listing.take(rows),
        group_stops=tuple(group_stops.tolist()),
        stem=f"{shard.split}/{shard.continent}-{shard_number(shard):05d}",
        format=bench.manifest.format,
        decode=False,
        store=LocalStore(bench.tree / str(number), bench.tree),
    )


class _Planner:
    """Finds out which crops a shard held, and in what order and row groups."""

    def __init__(self, bench: _Bench, shards: list[Shard], listing: Listing) -> None:
        self._bench = bench
        self._listing = listing
        self._lost = {(s.split, s.continent) for s in shards if s.meta_path in bench.broken}

    def layouts(self, shard: Shard) -> list[tuple[Indices, Indices]]:
        """Return (rows, where each row group stops): as the meta file has them, or else as packing may have planned."""
        if shard.meta_path not in self._bench.broken:
            meta = read_meta(self._bench.folder / shard.meta_path)
            if meta is not None and len(meta) == shard.rows:
                return self._recorded(meta["key"].to_pylist(), shard.row_groups)
        found: list[tuple[Indices, Indices]] = []
        for plans in (self._placed, self._fresh):
            plan = plans.get((shard.split, shard.continent, shard_number(shard)))
            if plan is not None and not any(_is_same(plan, one) for one in found):
                found.append((plan.rows, plan.group_stops))
        return found

    def _recorded(self, keys: list[str], groups: tuple[int, ...]) -> list[tuple[Indices, Indices]]:
        hashes, key_hash = hash_keys(keys, self._bench.manifest.seed), self._listing.rows.key_hash
        if not len(key_hash):
            return []
        position = np.minimum(np.searchsorted(key_hash, hashes, sorter=self._by_hash), len(key_hash) - 1)
        rows = self._by_hash[position]
        is_there = key_hash[rows] == hashes
        stops = np.unique(np.cumsum(is_there)[np.cumsum(groups) - 1])
        return [(rows[is_there], stops[stops > 0])] if is_there.any() else []

    @cached_property
    def _by_hash(self) -> npt.NDArray[np.int64]:
        return np.argsort(self._listing.rows.key_hash)

    @cached_property
    def _fresh(self) -> dict[tuple[str, str, int], PlannedShard]:
        """As a version is planned that follows none."""
        return self._plan(None)

    @cached_property
    def _placed(self) -> dict[tuple[str, str, int], PlannedShard]:
        """As a version is planned that follows this one: people stay where the manifest has them."""
        unknown: dict[tuple[str, str], list[Shard]] = {group: [] for group in self._lost}

        def nobody_of(shard: Shard) -> list[str]:
            group = (shard.split, shard.continent)
            labels = self._bench.labels(shard) if group in self._lost else None
            if labels is None and group in self._lost:
                unknown[group].append(shard)
            return [] if labels is None else keys_of_nobody(labels)

        found = placements(self._bench.manifest, nobody_of)
        for group, shards in unknown.items():
            if len(shards) == 1:  # what is nobody's and lies nowhere else lies there
                found[group] = _with_nobody(found[group], _hashes_of_nobody(self._listing.rows, *group), shards[0])
        return self._plan(found)

    def _plan(self, previous: dict[tuple[str, str], Placement] | None) -> dict[tuple[str, str, int], PlannedShard]:
        manifest = self._bench.manifest
        plans = plan_shards(self._listing.rows, manifest.shard_rows, manifest.seed, previous)
        return {(plan.split, plan.continent, plan.number): plan for plan in plans}


def _is_same(plan: PlannedShard, layout: tuple[Indices, Indices]) -> bool:
    return np.array_equal(plan.rows, layout[0]) and np.array_equal(plan.group_stops, layout[1])


def _hashes_of_nobody(rows: Rows, split: str, continent: str) -> list[int]:
    if continent not in rows.continents:
        return []
    codes = rows.splits.index(split), rows.continents.index(continent)
    is_nobody = (rows.split == codes[0]) & (rows.continent == codes[1]) & (rows.pid < 0)
    hashes: list[int] = rows.key_hash[is_nobody].tolist()
    return hashes


def _with_nobody(place: Placement, hashes: list[int], shard: Shard) -> Placement:
    """Return a placement where crops of nobody's that have no shard have the given one."""
    return replace(place, shard_of_nobody={**dict.fromkeys(hashes, shard_number(shard)), **place.shard_of_nobody})
