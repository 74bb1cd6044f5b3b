"""People or crops taken out of a packed data set: a new version without them, searched for what might remain."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from entire_id.errors import EntireIdError, ErasureError, ManifestError, OutputExistsError, WriteFailedError
from entire_id.records import CAMERAS_FILE, PART_OF_SPLIT, Person, Progress, no_progress
from entire_id.shards.cameras import cameras_csv, packed_cameras
from entire_id.shards.engine import run_tasks
from entire_id.shards.listing import RejectedLog, list_crops
from entire_id.shards.manifest import (
    MANIFEST_FILE,
    README_FILE,
    VERSION,
    Manifest,
    Shard,
    check_digest,
    read_manifest,
    version_numbers,
)
from entire_id.shards.pack import GO_ON_AFTER, PackConfig, read_placements, scratch_file, shard_tasks, write_manifest
from entire_id.shards.packed import PackedRow, PackedShard, PackedSource, read_checked_meta, read_image, rows_of
from entire_id.shards.plan import plan_shards
from entire_id.shards.remains import Removed, ShardSearch, Trace, find_in_text, search_shard, trace_of
from entire_id.shards.store import Store, open_store
from entire_id.shards.tombstones import (
    Entry,
    add_tombstones,
    check_outside,
    image_entry,
    make_secret,
    read_secret,
    read_tombstones,
)
from entire_id.shards.write import KeepTask, PreviousShard, ShardDone, ShardTask, keep_shard, write_shard
from entire_id.staging import append_line

__all__ = ["ErasePlan", "EraseReport", "EraseRequest", "erase", "plan_erasure", "read_names"]

_PERSON = re.compile(r"(?:(train|test)/)?([0-9]{1,10})")
_SHOWN = 3  # names in a sentence


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """Whom or what to take out, and what to write down about it.

    Attributes:
        people: `test/17`, or `17` where only one part has that number.
        keys: of crops.
        listed: people or keys; see `read_names`.
        version: of what remains; the next minor one by default.
        jobs: processes at work; see `engine.run_tasks`.
        tombstones: file to note the erased in, as keyed hashes; see `tombstones`.
        secret: file of the secret that these are made with.
        new_secret: make the secret if it is not there.
        log: file to append what was done to, without names.
        reason: why, for the log.
    """

    people: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    version: str = ""
    jobs: int = 1
    tombstones: Path | None = None
    secret: Path | None = None
    new_secret: bool = False
    log: Path | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: nothing is named, a field is out of its range, or one lacks another.
        """
        if not (self.people or self.keys or self.listed):
            raise ValueError("name a person or a key to take out")
        if self.version and not VERSION.fullmatch(self.version):
            raise ValueError(f"version {self.version!r} is not of the form 1.2.0")
        if self.jobs < 1:
            raise ValueError(f"jobs {self.jobs} must be at least 1")
        if (self.tombstones is None) != (self.secret is None):
            raise ValueError("tombstones and the secret that makes them go together")
        if self.new_secret and self.secret is None:
            raise ValueError("a new secret needs a file")
        if (self.log is None) == bool(self.reason):
            raise ValueError("a log and a reason to write there go together")
        files = [path.resolve() for path in (self.tombstones, self.secret, self.log) if path is not None]
        if len({*files}) < len(files):
            raise ValueError("tombstones, secret and log are files of their own")
        for text in self.people:
            if not _PERSON.fullmatch(text):
                raise ValueError(f"{text!r} is no person, such as test/17")


@dataclass(frozen=True, slots=True)
class ErasePlan:
    """What an erasure takes out; it can be printed.

    Attributes:
        folder: the data set.
        manifest: of it.
        version: of what remains.
        removed: people, crops and images that go.
        num_copies: crops among them that nobody named, but whose image is that of one that goes.
        touched: paths of the shards that hold some.
        views: (camid, continent) → how many crops remain.
        lost_cameras: cameras of which none does.
    """

    folder: Path
    manifest: Manifest
    version: str
    removed: Removed = field(repr=False)
    num_copies: int
    touched: frozenset[str]
    views: Counter[tuple[int, str]]
    lost_cameras: frozenset[int]


@dataclass(frozen=True, slots=True)
class EraseReport:
    """What was taken out.

    Attributes:
        folder: the new version.
        manifest: what it holds.
        old_version: that from which they were taken.
        num_people: people of whom nothing remains.
        num_crops: crops that went.
        num_copies: those of them that nobody named, but whose image is that of one that was.
        num_rewritten: shards that were written anew.
        num_dropped: shards of which nothing remained.
        num_kept: shards that are as they were.
        removed: whom and what; not for anything that is kept.
        num_resumed: shards that an interrupted run had written.
        num_tombstones: lines that were added to the tombstones.
    """

    folder: Path
    manifest: Manifest
    old_version: str
    num_people: int
    num_crops: int
    num_copies: int
    num_rewritten: int
    num_dropped: int
    num_kept: int
    removed: Removed = field(repr=False)
    num_resumed: int = 0
    num_tombstones: int = 0


def erase(folder: str | Path, out: str | Path, request: EraseRequest, progress: Progress = no_progress) -> EraseReport:
    """Write the data set in `folder` without the people and crops of `request` into the new folder `out`.

    Every crop with the same bytes as one that goes, goes too, whatever it is called. Shards that held none of them are
    kept as they are, by hard links where the file system allows it; the others are written anew, to the bytes that
    `pack` gives for the crops that remain with `previous`. The old folder is not touched.

    Before `out` has its name all of it is searched, and what is found is an error. It is then proved of the new files,
    by their bytes, that no removed image is in them whole, and no removed key that a search can tell from those that
    remain; and of all shards, by rows, that no removed key, person or image is in them. That kept shards hold nothing
    but their rows follows from their digests, which are those that packing wrote down. It is not proved that no other
    picture shows the same person: not one under another number, nor one that was encoded anew.

    The tombstones are written before `out` has its name, the line of the log afterwards. A run that was interrupted
    left `<out>.partial`, and the same call goes on with it.

    Args:
        folder: a packed data set.
        out: folder to make; it must not exist, or be empty.
        request: whom to take out.
        progress: told how far it is.

    Raises:
        DatasetNotFoundError: no manifest lies in `folder`.
        ErasureError: a person or key is not there, a number is that of two people, nothing would remain, the version
            does not follow, or something of the removed crops was found afterwards.
        TombstonesError: the tombstones or the secret cannot be used, or lie in a data set.
        ManifestError: the data set is not what its manifest says.
        OutputExistsError: `out` holds something, or another run is making it.
        WriteFailedError: the disk is full, or refuses.
        WorkerDiedError: a worker process was killed.
    """
    folder, out = Path(folder), Path(out)
    _check_places(folder, out, request)
    plan = plan_erasure(folder, request, progress)
    secret = _open_secret(request)
    try:
        with open_store(out, GO_ON_AFTER) as (store, _):
            done = _make_shards(plan, store, request.jobs, progress)
            manifest = write_manifest(store, _config(plan), done, _cameras(plan))
            _search(plan, manifest, Path(store.name), done, request.jobs, progress)
            num_tombstones = 0
            if request.tombstones is not None:
                num_tombstones = add_tombstones(request.tombstones, secret, _entries(plan.removed))
    except OSError as error:
        if isinstance(error, EntireIdError):
            raise
        raise WriteFailedError(error.filename or out, error.strerror or str(error)) from error
    num_kept = sum(shard.kept for shard in done)
    report = EraseReport(
        folder=out,
        manifest=manifest,
        old_version=plan.manifest.version,
        num_people=_num_people(plan.manifest) - _num_people(manifest),
        num_crops=len(plan.removed.keys),
        num_copies=plan.num_copies,
        num_rewritten=len(done) - num_kept,
        num_dropped=len(plan.manifest.shards) - len(done),
        num_kept=num_kept,
        removed=plan.removed,
        num_resumed=sum(shard.resumed for shard in done),
        num_tombstones=num_tombstones,
    )
    if request.log is not None:
        _write_log(request.log, plan, report, request.reason)
    return report


def _num_people(manifest: Manifest) -> int:
    return len({Person(PART_OF_SPLIT[shard.split], pid) for shard in manifest.shards for pid in shard.pids})


def _check_places(folder: Path, out: Path, request: EraseRequest) -> None:
    """Refuse an output inside the data set, or around it, and notes that would be published with either."""
    old, new = folder.resolve(), out.resolve()
    if new == old or old in new.parents or new in old.parents:
        raise OutputExistsError(out, "it lies inside the data set, or holds it")
    for path, what in (
        (request.secret, "the secret"),
        (request.tombstones, "the list of tombstones"),
        (request.log, "the log"),
    ):
        if path is not None:
            check_outside(path, what, out)
    for path in filter(None, (request.tombstones, request.log)):
        if path.is_dir() or not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise ErasureError(folder, f"{str(path)!r} cannot be written. Name a file in a folder of yours")


def _open_secret(request: EraseRequest) -> bytes:
    """Return the secret, after a look at whether it is that of the tombstones; nothing where there is none."""
    if request.secret is None or request.tombstones is None:
        return b""
    secret = make_secret(request.secret) if request.new_secret else read_secret(request.secret)
    if request.tombstones.exists():
        read_tombstones(request.tombstones, secret)
    return secret


def read_names(path: Path) -> tuple[str, ...]:
    """Return the people and keys that a file names, one a line; blank lines do not count.

    Raises:
        ErasureError: it cannot be read, or names nothing.
    """
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ErasureError(path, f"the list cannot be read ({error})") from error
    if not names:
        raise ErasureError(path, "the list names nobody. Give a person (test/17) or a key a line")
    return names


# --- what goes --------------------------------------------------------------------------------------------------------


def plan_erasure(folder: str | Path, request: EraseRequest, progress: Progress = no_progress) -> ErasePlan:
    """Return what `erase` would take out; nothing is written.

    Raises:
        DatasetNotFoundError, ErasureError, ManifestError: see `erase`.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    version = _version(folder, manifest, request)
    people = _people(folder, manifest, request)
    shards = {shard.path: _packed(folder, manifest, shard) for shard in manifest.shards}
    named, traces = _find_named(folder, shards, people, _keys(request), progress)
    _check_ambiguous(folder, request, shards)
    gone = _find_copies(shards, named, traces, progress)
    if not gone.views:
        raise ErasureError(folder, "nothing would remain. To give up the whole data set, delete its folder")
    removed = Removed(people, gone.keys, traces)
    _check_reason(folder, request, removed)
    return ErasePlan(
        folder=folder,
        manifest=manifest,
        version=version,
        removed=removed,
        num_copies=len(gone.keys) - len(named),
        touched=gone.touched,
        views=gone.views,
        lost_cameras=frozenset({camid for camid, _ in gone.lost_views} - {camid for camid, _ in gone.views}),
    )


def _version(folder: Path, manifest: Manifest, request: EraseRequest) -> str:
    old = version_numbers(manifest.version)
    version = request.version or f"{old[0]}.{old[1] + 1}.0"
    if version_numbers(version) <= old:
        raise ErasureError(
            folder, f"its version is {manifest.version}, and {version} does not follow. Give a later one"
        )
    return version


def _people(folder: Path, manifest: Manifest, request: EraseRequest) -> frozenset[Person]:
    known = {Person(PART_OF_SPLIT[shard.split], pid) for shard in manifest.shards for pid in shard.pids}
    named = [*request.people, *(text for text in request.listed if _PERSON.fullmatch(text))]
    people = set()
    for text in named:
        part, _, number = text.rpartition("/")
        matching = [Person(one, int(number)) for one in ((part,) if part else ("train", "test"))]
        found = [person for person in matching if person in known]
        if not found:
            raise ErasureError(folder, f"there is no person {text!r}. People are written test/17 or train/17")
        if len(found) > 1:
            both = " and ".join(map(str, found))
            raise ErasureError(folder, f"{text!r} may be either of two people, {both}. Write which one")
        people.add(found[0])
    return frozenset(people)


def _keys(request: EraseRequest) -> frozenset[str]:
    return frozenset({*request.keys, *(text for text in request.listed if not _PERSON.fullmatch(text))})


def _packed(folder: Path, manifest: Manifest, shard: Shard) -> PackedShard:
    entries = {entry.path: entry for entry in manifest.files if entry.path in (shard.path, shard.meta_path)}
    return PackedShard(folder, manifest.format, shard, (entries[shard.path], entries[shard.meta_path]))


def _meta(packed: PackedShard) -> pa.Table:
    return read_checked_meta(packed.folder, packed.shard, packed.files[1])


def _find_named(
    folder: Path,
    shards: Mapping[str, PackedShard],
    people: frozenset[Person],
    keys: frozenset[str],
    progress: Progress,
) -> tuple[frozenset[str], tuple[Trace, ...]]:
    """Return the keys of the crops that were named or show those who were, and what their images are known by."""
    named: set[str] = set()
    traces: dict[bytes, Trace] = {}
    splits = {key.partition("/")[0] for key in keys}
    for number, packed in enumerate(shards.values(), 1):
        shard = packed.shard
        pids = {pid for pid in shard.pids if Person(PART_OF_SPLIT[shard.split], pid) in people}
        if pids or shard.split in splits:
            meta = _meta(packed)
            for row, pid in zip(rows_of(meta), meta["pid"].to_pylist(), strict=True):
                if pid in pids or row.key in keys:
                    named.add(row.key)
                    trace = trace_of(read_image(folder, shard, row), row.xxh3)
                    traces[trace.sha256] = trace
        progress("looking for crops", number, len(shards), f"{len(named):,} found")
    if unknown := sorted(keys - named):
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        shown = ", ".join(map(repr, unknown[:_SHOWN])) + more
        raise ErasureError(
            folder, f"it has no crop {shown}. Keys are those of its meta files: query/name-without-ending"
        )
    return frozenset(named), tuple(traces.values())


def _check_ambiguous(folder: Path, request: EraseRequest, shards: Mapping[str, PackedShard]) -> None:
    """Refuse a line of a list that is a person and the key of a crop as well: train/17."""
    names = {text for text in request.listed if _PERSON.fullmatch(text)}
    for packed in shards.values():
        if packed.shard.split in {name.partition("/")[0] for name in names}:
            for name in sorted(names.intersection(_meta(packed)["key"].to_pylist())):
                raise ErasureError(folder, f"{name!r} is a person and a crop. Name it by --person or by --key")


class _Gone(NamedTuple):
    """All crops that go, the shards that hold some, and the views of crops that remain and of those that go."""

    keys: frozenset[str]
    touched: frozenset[str]
    views: Counter[tuple[int, str]]
    lost_views: Counter[tuple[int, str]]


def _find_copies(
    shards: Mapping[str, PackedShard], named: frozenset[str], traces: tuple[Trace, ...], progress: Progress
) -> _Gone:
    digests = {trace.sha256 for trace in traces}
    checksums = {trace.xxh3 for trace in traces}
    keys, touched = set(named), set()
    views, lost_views = Counter[tuple[int, str]](), Counter[tuple[int, str]]()
    for number, (path, packed) in enumerate(shards.items(), 1):
        meta = _meta(packed)
        for row, camid in zip(rows_of(meta), meta["camid"].to_pylist(), strict=True):
            view = camid, packed.shard.continent
            if row.key in named or (row.xxh3 in checksums and _is_one_of(packed, row, digests)):
                keys.add(row.key)
                touched.add(path)
                lost_views[view] += 1
            else:
                views[view] += 1
        progress("looking for copies", number, len(shards), f"{len(keys) - len(named):,} found")
    return _Gone(frozenset(keys), frozenset(touched), views, lost_views)


def _is_one_of(packed: PackedShard, row: PackedRow, digests: set[bytes]) -> bool:
    """Tell whether an image is one of those whose SHA-256 is known: a checksum of 64 bits is a reason to look."""
    return hashlib.sha256(read_image(packed.folder, packed.shard, row)).digest() in digests


def _check_reason(folder: Path, request: EraseRequest, removed: Removed) -> None:
    for name in find_in_text(request.reason, removed):
        raise ErasureError(folder, f"the reason names {name!r}, and the log must name nobody. Write it without")


# --- what remains -----------------------------------------------------------------------------------------------------


def _config(plan: ErasePlan) -> PackConfig:
    old = plan.manifest
    return PackConfig(plan.version, old.format, old.name, old.shard_rows, old.seed)


def _cameras(plan: ErasePlan) -> str:
    (entry,) = (entry for entry in plan.manifest.files if entry.path == CAMERAS_FILE)
    path = check_digest(plan.folder, entry)
    try:
        cameras = packed_cameras(path.read_text("utf-8"), plan.lost_cameras)
    except (KeyError, ValueError) as error:
        raise ManifestError(path, f"no list of cameras ({error})", plan.folder) from error
    return cameras_csv(cameras, plan.views)


def _make_shards(plan: ErasePlan, store: Store, jobs: int, progress: Progress) -> list[ShardDone]:
    """Write and link all shards, in their order."""
    config = _config(plan)
    old = {shard.path: _packed(plan.folder, plan.manifest, shard) for shard in plan.manifest.shards}
    source = PackedSource(str(plan.folder), {path: old[path] for path in old if path in plan.touched})
    done: list[ShardDone] = []
    num_rows = 0
    with scratch_file(store, "listing") as path, RejectedLog(path.with_suffix(".csv"), strict=True) as log:
        listing = list_crops(replace(source, without=plan.removed.keys), config.seed, path, log, progress)
        touched = replace(plan.manifest, shards=tuple(packed.shard for packed in source.shards.values()))
        placed = read_placements(plan.folder, touched)
        planned = plan_shards(listing.rows, config.shard_rows, config.seed, placed)
        tasks = _in_order(old.values(), shard_tasks(planned, listing, source, store, config, None), plan.touched, store)
        with closing(run_tasks(_make_shard, tasks, jobs)) as shards:
            for one in shards:
                for rejected in one.rejected:  # another version of this package had packed it
                    raise ManifestError(rejected.path, f"cannot be packed any more ({rejected.reason})", plan.folder)
                done.append(one)
                num_rows += one.shard.rows if one.shard else 0
                progress("writing", num_rows, plan.views.total())
    return done


def _in_order(
    old: Iterable[PackedShard], written: Iterator[ShardTask], touched: Collection[str], store: Store
) -> Iterator[ShardTask | KeepTask]:
    """Yield what to do for every shard of which something remains, in the order of the manifest."""
    following = next(written, None)
    for packed in old:
        if following is not None and following.path == packed.shard.path:
            yield following
            following = next(written, None)
        elif packed.shard.path not in touched:
            yield KeepTask(PreviousShard(packed.folder, packed.shard, packed.files), store)


def _make_shard(task: ShardTask | KeepTask) -> ShardDone:
    return keep_shard(task) if isinstance(task, KeepTask) else write_shard(task)


# --- what was done ----------------------------------------------------------------------------------------------------


def _search(
    plan: ErasePlan, manifest: Manifest, tree: Path, done: list[ShardDone], jobs: int, progress: Progress
) -> None:
    """Look for the removed crops in everything that was made.

    Raises:
        ErasureError: something was found.
    """
    for name in (README_FILE, MANIFEST_FILE, CAMERAS_FILE):
        for _ in find_in_text((tree / name).read_text("utf-8"), plan.removed):
            raise ErasureError(plan.folder, f"{name} of the new version names what was to go. Pack anew without it")
    is_new = {one.shard.path for one in done if one.shard and not one.kept}
    tasks = (ShardSearch(tree, shard, manifest.format, plan.removed, shard.path in is_new) for shard in manifest.shards)
    with closing(run_tasks(search_shard, tasks, jobs)) as searched:
        for number, found in enumerate(searched, 1):
            for what in found:
                raise ErasureError(plan.folder, f"something would remain: {what}")
            progress("searching", number, len(manifest.shards))


def _entries(removed: Removed) -> Iterator[Entry]:
    """Yield what the tombstones are to hold."""
    for person in removed.people:
        yield "person", str(person).encode()
    for key in removed.keys:
        yield "key", key.encode()
    for trace in removed.traces:
        yield image_entry(trace.sha256)


def _write_log(path: Path, plan: ErasePlan, report: EraseReport, reason: str) -> None:
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": report.manifest.name,
        "from_version": report.old_version,
        "to_version": report.manifest.version,
        "from_content_sha256": plan.manifest.content_sha256,
        "to_content_sha256": report.manifest.content_sha256,
        "people": report.num_people,
        "crops": report.num_crops,
        "copies": report.num_copies,
        "shards": report.num_rewritten + report.num_dropped,
        "reason": reason,
    }
    try:
        append_line(path, json.dumps(line, ensure_ascii=False))
    except OSError as error:
        raise WriteFailedError(path, f"{report.folder} is complete, but not its line of the log ({error})") from error
