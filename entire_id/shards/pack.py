"""Samples → a folder of shards with its manifest: list, plan, write, give it its name."""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from entire_id.errors import (
    ClusterError,
    EntireIdError,
    NothingToPackError,
    OutputExistsError,
    PreviousVersionError,
    SourceChangedError,
    SourceUnreachableError,
    WorkerDiedError,
    WriteFailedError,
)
from entire_id.records import (
    CAMERAS_FILE,
    JUNK_PID,
    Progress,
    Reason,
    Source,
    no_progress,
)
from entire_id.remote import UNFINISHED, is_url, place_of, shown
from entire_id.shards.cameras import cameras_csv, undescribed_cameras
from entire_id.shards.configs import render_readme
from entire_id.shards.engine import check_ray, run_on_ray, run_tasks
from entire_id.shards.listing import Listing, RejectedLog, list_crops
from entire_id.shards.manifest import (
    FORMATS,
    MANIFEST_FILE,
    README_FILE,
    VERSION,
    FileEntry,
    Manifest,
    Shard,
    file_digest,
    read_manifest,
    version_numbers,
)
from entire_id.shards.placed import keys_of_nobody, placements
from entire_id.shards.plan import Placement, PlannedShard, Rows, plan_shards
from entire_id.shards.store import Store, open_store
from entire_id.shards.tombstones import Tombstones, read_secret, read_tombstones
from entire_id.shards.write import PreviousShard, ShardDone, ShardTask, known_stamps, write_shard

__all__ = [
    "ENGINES",
    "GO_ON_AFTER",
    "PackConfig",
    "PackReport",
    "pack",
    "read_placements",
    "scratch_file",
    "shard_tasks",
    "write_manifest",
]

ENGINES = ("local", "ray")
"""What may give the work to processes: those of this machine, or a Ray cluster."""

GO_ON_AFTER = (
    OSError,
    KeyboardInterrupt,
    MemoryError,
    SourceChangedError,
    SourceUnreachableError,
    WorkerDiedError,
    ClusterError,
)


@dataclass(frozen=True, slots=True)
class PackConfig:
    """How to pack.

    Attributes:
        version: semantic version of the content.
        format: `parquet` or `webdataset`.
        name: of the data set; that of its folder if empty.
        shard_rows: target size of a shard, about 180 MB at 8 kB a crop.
        seed: key of the hashes that place the rows, 0 to 2⁶⁴ - 1.
        strict: raise at the first rejected file.
        decode: decode every image, and reject what does not decode; about 150 µs a crop.
        jobs: processes that write shards; see `engine.run_tasks`.
        previous: folder of the version before: people stay in their shards, and unchanged shards are kept as they are.
        engine: one of `ENGINES`.
        address: of the Ray cluster to join, `auto` or `host:port`; one of this machine's own is started without.
        tombstones: file of what was erased for good; see `tombstones`.
        secret: file of the secret that made it.
    """

    version: str = "1.0.0"
    format: str = "parquet"
    name: str = ""
    shard_rows: int = 22_500
    seed: int = 0
    strict: bool = False
    decode: bool = False
    jobs: int = 1
    previous: Path | None = None
    engine: str = "local"
    address: str | None = None
    tombstones: Path | None = None
    secret: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a field is out of its range.
        """
        if not VERSION.fullmatch(self.version):
            raise ValueError(f"version {self.version!r} is not of the form 1.2.0")
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r} is none of {', '.join(FORMATS)}")
        if self.shard_rows < 1 or self.jobs < 1:
            raise ValueError(f"shard_rows {self.shard_rows} and jobs {self.jobs} must be at least 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} is not in 0..2**64 - 1")
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is none of {', '.join(ENGINES)}")
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"address {self.address!r} is for the engine ray, not {self.engine}")
        if (self.tombstones is None) != (self.secret is None):
            raise ValueError("tombstones and the secret that made them go together")


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was packed.

    Attributes:
        folder: the data set: its path, or its URL.
        manifest: what it holds.
        rejected: files left out, by reason.
        rejected_csv: their list; None if there are none.
        cameras_undescribed: cameras whose crops have no continent and that no cameras.csv describes, sorted.
        num_kept: shards of the previous version that were kept as they are.
        num_resumed: shards that an interrupted run had finished.
        junk: crops of pid -1 that were listed, by split.
    """

    folder: Path | str
    manifest: Manifest
    rejected: Mapping[Reason, int]
    rejected_csv: Path | str | None
    cameras_undescribed: tuple[int, ...]
    num_kept: int = 0
    num_resumed: int = 0
    junk: Mapping[str, int] = field(default_factory=dict)


def pack(
    source: Source, out: str | Path, config: PackConfig | None = None, progress: Progress = no_progress
) -> PackReport:
    """Pack `source` into the new folder `out` and return what was done.

    The folder appears under its name when it is complete. Files that cannot be packed are listed, with the reason, in
    `<out>.rejected.csv` beside it. A run that was interrupted left `<out>.partial`, and the same call goes on with it.

    Args:
        source: raw crops.
        out: folder to make, a path or a URL; it must not exist, or be empty.
        config: how to pack; `PackConfig()` by default.
        progress: told how far it is.

    Raises:
        SourceError: the source cannot be read as a whole.
        OutputExistsError: `out` holds something, or another run is making it.
        NothingToPackError: every file was rejected.
        CropRejectedError: `config.strict` and one file was rejected.
        SourceChangedError: a file changed or vanished while it was read.
        WriteFailedError: the disk is full, or refuses.
        SourceUnreachableError: the other end of the source's URL refuses, or does not answer.
        ClusterError: the Ray cluster does not answer, or breaks down.
        MissingExtraError: a package is missing that the engine or a URL needs.
        PreviousVersionError: the version cannot follow the previous one.
        TombstonesError: the tombstones cannot be read, or not with that secret.
    """
    out, config = place_of(out), config or PackConfig()
    config = replace(config, name=config.name or _last_name(out))
    _check_outside(out, source)
    if config.engine == "ray":
        check_ray()
    previous = None if config.previous is None else _read_previous(config)
    erased = _read_tombstones(config)
    try:
        with (
            open_store(out, GO_ON_AFTER) as (store, rejected_path),
            RejectedLog(rejected_path, strict=config.strict) as log,
        ):
            with scratch_file(store, "listing") as listing_path:
                listing = list_crops(source, config.seed, listing_path, log, progress, erased)
                placed = None if previous is None else read_placements(config.previous or Path(), previous)
                planned = plan_shards(listing.rows, config.shard_rows, config.seed, placed)
                tasks = (
                    replace(task, erased=erased)
                    for task in shard_tasks(planned, listing, source, store, config, previous)
                )
                with closing(_run(tasks, config)) as shards:
                    done = _collect(shards, len(listing), log, progress)
            rejected_csv = store.publish_rejected(log.publish())
            if not any(shard.files for shard in done):
                raise NothingToPackError(source.name, log.counts.total(), rejected_csv)
            manifest = write_manifest(store, config, done, cameras_csv(source.cameras, listing.views))
    except OSError as error:
        if isinstance(error, EntireIdError):
            raise
        raise WriteFailedError(error.filename or shown(str(out)), error.strerror or str(error)) from error
    return PackReport(
        folder=out if isinstance(out, Path) else shown(out),
        manifest=manifest,
        rejected=dict(log.counts),
        rejected_csv=rejected_csv,
        cameras_undescribed=undescribed_cameras(source.cameras, listing.views),
        num_kept=sum(shard.kept for shard in done),
        num_resumed=sum(shard.resumed for shard in done),
        junk=_count_junk(listing.rows),
    )


def _count_junk(rows: Rows) -> dict[str, int]:
    counts = np.bincount(rows.split[rows.pid == JUNK_PID], minlength=len(rows.splits))
    return {split: int(number) for split, number in zip(rows.splits, counts, strict=True) if number}


@contextmanager
def scratch_file(store: Store, name: str) -> Iterator[Path]:
    """Give the path of a file, to be made, that is removed at the end."""
    with store.scratch() as scratch:
        path = scratch / f"{name}{UNFINISHED}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _last_name(out: Path | str) -> str:
    return out.resolve().name if isinstance(out, Path) else out.rpartition("/")[2]


def _check_outside(out: Path | str, source: Source) -> None:
    """Refuse an output within the crops: the next run would take it for crops."""
    if isinstance(out, str):
        if f"{shown(out)}/".startswith(f"{source.name}/"):
            raise OutputExistsError(shown(out), "it lies inside the folder of crops")
        return
    inside = Path(source.name).resolve()
    if inside.is_dir() and inside in [out.resolve(), *out.resolve().parents]:
        raise OutputExistsError(out, "it lies inside the folder of crops")


# --- the version before -----------------------------------------------------------------------------------------------


def _read_previous(config: PackConfig) -> Manifest:
    folder = config.previous or Path()
    manifest = read_manifest(folder)
    if version_numbers(manifest.version) >= version_numbers(config.version):
        raise PreviousVersionError(folder, f"that is version {manifest.version}, this would be {config.version}")
    for name in ("format", "seed"):
        if getattr(manifest, name) != getattr(config, name):
            raise PreviousVersionError(
                folder, f"its {name} is {getattr(manifest, name)!r}, this one's {getattr(config, name)!r}"
            )
    return manifest


def _read_tombstones(config: PackConfig) -> Tombstones | None:
    if config.tombstones is None or config.secret is None:
        return None
    return read_tombstones(config.tombstones, read_secret(config.secret))


def read_placements(folder: Path, manifest: Manifest) -> dict[tuple[str, str], Placement]:
    """Return (split, continent) → where the data set in `folder` has whom.

    Raises:
        PreviousVersionError: a meta file is not what the manifest says.
    """

    def nobody_of(shard: Shard) -> list[str]:
        return keys_of_nobody(_read_placed(folder, manifest.entries[shard.meta_path].sha256, shard.meta_path))

    return placements(manifest, nobody_of)


def _read_placed(folder: Path, sha256: str, meta_path: str) -> pa.Table:
    try:
        if file_digest(folder / meta_path) == sha256:
            return pq.read_table(folder / meta_path, columns=["key", "pid"], partitioning=None)
    except OSError as error:
        raise PreviousVersionError(folder, f"{meta_path} cannot be read ({error})") from error
    raise PreviousVersionError(folder, f"{meta_path} is not the file of its manifest")


# --- shards -----------------------------------------------------------------------------------------------------------


def shard_tasks(
    planned: list[PlannedShard],
    listing: Listing,
    source: Source,
    store: Store,
    config: PackConfig,
    previous: Manifest | None,
) -> Iterator[ShardTask]:
    """Yield what must be known to write each planned shard; `previous` is what `config.previous` holds."""
    entries = {entry.path: entry for entry in previous.files} if previous else {}
    shards = {shard.path: shard for shard in previous.shards} if previous else {}
    for plan, rows in zip(planned, listing.tables(plan.rows for plan in planned), strict=True):
        path = f"data/{plan.stem}{FORMATS[config.format]}"
        old = shards.get(path)
        kept = config.previous and old and PreviousShard(config.previous, old, (entries[path], entries[old.meta_path]))
        task = ShardTask(
            source=source,
            rows=rows,
            group_stops=tuple(plan.group_stops.tolist()),
            stem=plan.stem,
            format=config.format,
            decode=config.decode,
            store=store,
            previous=kept or None,
        )
        # The listing of a URL has said when each file changed; a worker would have to ask for every one.
        yield replace(task, stamps=known_stamps(task)) if is_url(source.name) else task


def _run(tasks: Iterator[ShardTask], config: PackConfig) -> Generator[ShardDone, None, None]:
    if config.engine == "ray":
        return run_on_ray(write_shard, tasks, config.jobs, config.address)
    return run_tasks(write_shard, tasks, config.jobs)


def _collect(shards: Iterator[ShardDone], total: int, log: RejectedLog, progress: Progress) -> list[ShardDone]:
    finished, num_rows, num_bytes = [], 0, 0
    for done in shards:
        for rejected in done.rejected:
            log.add(rejected)
        finished.append(done)
        num_rows += len(done.rejected) + (done.shard.rows if done.shard else 0)
        num_bytes += sum(entry.bytes for entry in done.files)
        progress("packing", num_rows, total, f"{num_bytes / 1e9:.1f} GB, {log.counts.total():,} rejected")
    return finished


def _write_text(store: Store, name: str, text: str, rows: int = 0) -> FileEntry:
    with store.scratch() as scratch:
        path = scratch / f"{name}{UNFINISHED}"
        path.write_text(text, encoding="utf-8")
        digest = file_digest(path)
        return FileEntry(name, rows, store.place(path, name), digest)


def write_manifest(store: Store, config: PackConfig, shards: list[ShardDone], cameras: str) -> Manifest:
    """Write cameras.csv, README.md and manifest.json, and remove what an earlier run with another plan left.

    The manifest is last: at a URL it is what makes the folder a data set.
    """
    num_cameras = len(list(csv.DictReader(io.StringIO(cameras))))
    files = [entry for done in shards for entry in done.files]
    files.append(_write_text(store, CAMERAS_FILE, cameras, num_cameras))
    manifest = Manifest(
        name=config.name,
        version=config.version,
        format=config.format,
        seed=config.seed,
        shard_rows=config.shard_rows,
        shards=tuple(done.shard for done in shards if done.shard),
        files=tuple(sorted(files, key=lambda entry: entry.path)),
    )
    store.tidy(files)
    _write_text(store, README_FILE, render_readme(manifest))
    _write_text(store, MANIFEST_FILE, manifest.to_json())
    return manifest
