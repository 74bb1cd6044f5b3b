"""Samples → a folder of shards with its manifest: plan, write, check what was written, rename."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import xxhash

from entire_id.errors import ManifestError, NothingToPackError, OutputExistsError
from entire_id.records import UNKNOWN_CONTINENT, Camera, Progress, Reason, Rejected, Source, no_progress
from entire_id.schema import arrow_schema, meta_columns, shard_columns
from entire_id.shards.configs import render_readme
from entire_id.shards.images import Unusable, image_size
from entire_id.shards.listing import Listing, RejectedLog, list_crops
from entire_id.shards.manifest import (
    CAMERAS_FILE,
    FORMATS,
    MANIFEST_FILE,
    README_FILE,
    VERSION,
    FileEntry,
    Manifest,
    Shard,
    file_digest,
)
from entire_id.shards.parquet import ParquetShard, write_meta
from entire_id.shards.plan import PlannedShard, plan_shards
from entire_id.shards.records import Crops, ShardWriter, Spans
from entire_id.shards.tar import TarShard
from entire_id.staging import beside, new_folder, sync

__all__ = ["ROW_GROUPS_KEY", "PackConfig", "PackReport", "pack"]

ROW_GROUPS_KEY = b"row_groups"
"""Metadata key of a meta file: JSON list of how many rows each row group of its shard has, in order."""

_MAX_GROUP_BYTES = 1 << 30  # an Arrow binary array ends at 2 GiB
_WRITERS: dict[str, Callable[[Path], ShardWriter]] = {"parquet": ParquetShard, "webdataset": TarShard}


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
    """

    version: str = "1.0.0"
    format: str = "parquet"
    name: str = ""
    shard_rows: int = 22_500
    seed: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        if not VERSION.fullmatch(self.version):
            raise ValueError(f"version {self.version!r} is not of the form 1.2.0")
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r} is none of {', '.join(FORMATS)}")
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows {self.shard_rows} is not at least 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} is not in 0..2**64 - 1")


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was packed.

    Attributes:
        folder: the data set.
        manifest: what it holds.
        rejected: files left out, by reason.
        rejected_csv: their list; None if there are none.
        cameras_undescribed: cameras seen in names that no cameras.csv describes, sorted.
    """

    folder: Path
    manifest: Manifest
    rejected: Mapping[Reason, int]
    rejected_csv: Path | None
    cameras_undescribed: tuple[int, ...]


def pack(
    source: Source, out: str | Path, config: PackConfig | None = None, progress: Progress = no_progress
) -> PackReport:
    """Pack `source` into the new folder `out` and return what was done.

    The folder appears under its name when it is complete. Files that cannot be packed are listed, with the reason, in
    `<out>.rejected.csv` beside it.

    Args:
        source: raw crops.
        out: folder to make; it must not exist, or be empty.
        config: how to pack; `PackConfig()` by default.
        progress: told how far it is.

    Raises:
        OutputExistsError: `out` holds something.
        SourceError: the source cannot be read as a whole.
        NothingToPackError: every file was rejected.
        CropRejectedError: `config.strict` and one file was rejected.
    """
    out, config = Path(out), config or PackConfig()
    config = replace(config, name=config.name or out.resolve().name)
    _check_outside(out, source)
    with (
        new_folder(out) as partial,
        RejectedLog(beside(out, ".rejected.csv"), strict=config.strict) as log,
    ):
        listing = list_crops(source, config.seed, log, progress)
        written = _write_shards(source, listing, partial, config, log, progress)
        rejected_csv = log.publish()
        if not written:
            raise NothingToPackError(source.name, log.counts.total(), rejected_csv)
        manifest = _write_manifest(partial, config, written, _cameras_csv(source.cameras, listing))
    return PackReport(out, manifest, dict(log.counts), rejected_csv, _undescribed(source.cameras, listing))


def _check_outside(out: Path, source: Source) -> None:
    """Refuse an output within the crops: the next run would take it for crops."""
    inside = Path(source.name).resolve()
    if inside.is_dir() and inside in [out.resolve(), *out.resolve().parents]:
        raise OutputExistsError(out, "it lies inside the folder of crops")


def _write_text(folder: Path, name: str, text: str, rows: int = 0) -> FileEntry:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    sync(path)
    return FileEntry(name, rows, path.stat().st_size, file_digest(path))


def _write_manifest(
    folder: Path, config: PackConfig, written: list[tuple[Shard, list[FileEntry]]], cameras_csv: str
) -> Manifest:
    """Write cameras.csv, manifest.json and README.md."""
    files = [entry for _, entries in written for entry in entries]
    num_cameras = len(list(csv.DictReader(io.StringIO(cameras_csv))))
    files.append(_write_text(folder, CAMERAS_FILE, cameras_csv, num_cameras))
    manifest = Manifest(
        name=config.name,
        version=config.version,
        format=config.format,
        seed=config.seed,
        shard_rows=config.shard_rows,
        shards=tuple(shard for shard, _ in written),
        files=tuple(sorted(files, key=lambda entry: entry.path)),
    )
    _write_text(folder, MANIFEST_FILE, manifest.to_json())
    _write_text(folder, README_FILE, render_readme(manifest))
    return manifest


def _seen_continents(listing: Listing) -> dict[int, set[str]]:
    """Return the continents under which each camera's crops are packed."""
    seen: dict[int, set[str]] = {}
    pairs = listing.table.select(["camid", "continent"]).group_by(["camid", "continent"]).aggregate([])
    for camid, continent in zip(pairs["camid"].to_pylist(), pairs["continent"].to_pylist(), strict=True):
        seen.setdefault(camid, set()).add(continent)
    return seen


def _undescribed(cameras: tuple[Camera, ...], listing: Listing) -> tuple[int, ...]:
    described = {camera.camid for camera in cameras}
    seen = _seen_continents(listing).items()
    return tuple(sorted(camid for camid, found in seen if UNKNOWN_CONTINENT in found and camid not in described))


def _cameras_csv(cameras: tuple[Camera, ...], listing: Listing) -> str:
    """Return the text of `cameras.csv`: what the owner wrote, and every camera that was seen.

    The continent is that of the camera's crops, blank where they have several (a table may name them).
    """
    described = {camera.camid: camera for camera in cameras if camera.continent is not None}
    seen = _seen_continents(listing)
    extra = list(dict.fromkeys(name for camera in cameras for name in camera.columns))
    columns = ["camid", "continent", *(name for name in extra if name not in ("camid", "continent"))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for camid in sorted({*described, *seen}):
        camera = described.get(camid, Camera(camid, UNKNOWN_CONTINENT))
        found = seen.get(camid, {camera.continent})
        continent = next(iter(found)) if len(found) == 1 else ""
        writer.writerow({**camera.columns, "camid": camid, "continent": continent})
    return text.getvalue()


def _write_shards(
    source: Source, listing: Listing, partial: Path, config: PackConfig, log: RejectedLog, progress: Progress
) -> list[tuple[Shard, list[FileEntry]]]:
    done, written = 0, []
    for planned in plan_shards(listing.rows, config.shard_rows, config.seed):
        shard = _write_shard(planned, source, listing, partial, config.format, log)
        if shard is not None:
            written.append(shard)
        done += len(planned.rows)
        progress("packing", done, len(listing.table))
    return written


def _write_shard(
    planned: PlannedShard, source: Source, listing: Listing, partial: Path, format_: str, log: RejectedLog
) -> tuple[Shard, list[FileEntry]] | None:
    """Write a shard and its meta file; None if every crop of it was rejected."""
    path = f"data/{planned.stem}{FORMATS[format_]}"
    meta_path = f"meta/{planned.stem}.parquet"
    temporary = _temporary(partial, path)
    writer = _WRITERS[format_](temporary)
    labels, group_rows, num_bytes = [], [], 0
    try:
        for group in planned.groups():
            for crops in _read_crops(listing.take(group), source, log):
                writer.write(crops)
                labels.append(crops.labels)
                group_rows.append(len(crops))
                num_bytes += crops.num_bytes
    except BaseException:
        writer.abandon()
        raise
    spans = writer.close()
    if not labels:
        temporary.unlink()
        return None
    meta = _meta_table(pa.concat_tables(labels), path, spans, group_rows)
    _check_spans(temporary, spans, meta["xxh3"].to_pylist())
    write_meta(_temporary(partial, meta_path), meta)
    entries = [_finish(partial, name, len(meta)) for name in (path, meta_path)]
    pids = sorted({pid for pid in meta["pid"].unique().to_pylist() if pid >= 0})
    image_bytes = int(spans.length.sum(dtype="int64"))
    shard = Shard(
        planned.split,
        planned.continent,
        path,
        meta_path,
        len(meta),
        num_bytes,
        meta.nbytes,
        image_bytes,
        tuple(pids),
    )
    return shard, entries


def _temporary(partial: Path, name: str) -> Path:
    return partial / f"{name.replace('/', '-')}.partial"


def _finish(partial: Path, name: str, rows: int) -> FileEntry:
    """Flush a written file, give it its name and describe it."""
    temporary, path = _temporary(partial, name), partial / name
    sync(temporary)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(path)
    return FileEntry(name, rows, path.stat().st_size, file_digest(path))


def _read_crops(rows: pa.Table, source: Source, log: RejectedLog) -> Iterator[Crops]:
    """Yield the images of `rows`, all at once unless they are huge; those that cannot be used go to `log`."""
    images: list[_Image] = []
    for number, path in enumerate(rows["path"].to_pylist()):
        image = _read_image(path, number, source)
        if isinstance(image, Rejected):
            log.add(image)
            continue
        images.append(image)
        if sum(len(image.data) for image in images) > _MAX_GROUP_BYTES:
            yield _crops(rows, images)
            images = []
    if images:
        yield _crops(rows, images)


def _crops(rows: pa.Table, images: list[_Image]) -> Crops:
    rows = rows.take(pa.array([image.row for image in images], pa.int64()))
    names = [path.rpartition("/")[2] for path in rows["path"].to_pylist()]
    columns = {name: rows[name] for name in rows.column_names} | {
        "width": pa.array([image.width for image in images]),
        "height": pa.array([image.height for image in images]),
        "xxh3": pa.array([xxhash.xxh3_64_hexdigest(image.data) for image in images]),
    }
    fields = [field for field in arrow_schema(shard_columns()) if field.name != "image"]
    labels = pa.table([columns[field.name].cast(field.type) for field in fields], pa.schema(fields))
    return Crops([image.data for image in images], names, labels.combine_chunks())


class _Image(NamedTuple):
    """One crop that was read: its row in the group, bytes, and size in px."""

    row: int
    data: bytes
    width: int
    height: int


def _read_image(path: str, row: int, source: Source) -> _Image | Rejected:
    try:
        data = source.read(path)
    except FileNotFoundError:
        return Rejected(path, Reason.MISSING, "gone since it was listed")
    except OSError as error:
        reason = Reason.TOO_LARGE if error.errno == errno.EFBIG else Reason.UNREADABLE
        return Rejected(path, reason, error.strerror or str(error))
    size = image_size(data)
    if isinstance(size, Unusable):
        return Rejected(path, size.reason, size.detail)
    return _Image(row, data, size.width, size.height)


def _meta_table(labels: pa.Table, path: str, spans: Spans, group_rows: list[int]) -> pa.Table:
    columns = [*labels.columns, pa.array([path] * len(labels)), pa.array(spans.offset), pa.array(spans.length)]
    schema = arrow_schema(meta_columns()).with_metadata({ROW_GROUPS_KEY: json.dumps(group_rows).encode()})
    return pa.Table.from_arrays(columns, schema=schema)


def _check_spans(path: Path, spans: Spans, digests: list[str]) -> None:
    """Read every image back where the index says it lies.

    Raises:
        ManifestError: the bytes there are not those that were packed.
    """
    with path.open("rb") as file:
        for offset, length, digest in zip(spans.offset.tolist(), spans.length.tolist(), digests, strict=True):
            if xxhash.xxh3_64_hexdigest(os.pread(file.fileno(), length, offset)) != digest:
                raise ManifestError(path, f"bytes {offset}..{offset + length} are not those of the image packed there")
