"""How many bytes travel when a published version changes: packed by the package, sent by the real Xet client."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hf_xet
import pyarrow.parquet as pq
from order_rules import Rule, applied
from trees import make_tree

from entire_id.records import Rejected, Sample, Source
from entire_id.shards.pack import PackConfig, pack
from entire_id.shards.parquet import _image_chunk, _read_page_header, image_spans
from entire_id.sources.layouts import open_source

TYPICAL = 411  # crops of a person


class Part:
    """A source without some of its crops."""

    def __init__(self, source: Source, left_out: set[str]) -> None:
        self._source, self._left_out = source, left_out
        self.name, self.cameras = source.name, source.cameras
        self.read, self.stamp = source.read, source.stamp

    def samples(self) -> Iterator[Sample | Rejected]:
        return (sample for sample in self._source.samples() if sample.path not in self._left_out)


@dataclass(frozen=True)
class Edit:
    """One change of the data set.

    Attributes:
        name: what happens.
        target: the crops of the new version.
        crops: paths of those that come or go.
        follows: the new version is packed with `--previous`.
        times: how often it happens at once, each time in another shard.
    """

    name: str
    target: Source
    crops: set[str]
    follows: bool = True
    times: int = 1


@dataclass(frozen=True)
class Traffic:
    """Bytes sent for one edit, and what share of the changed shards' image pages is new."""

    sent: int
    new_pages: float


def config(number: int, previous: Path | None = None) -> PackConfig:
    return PackConfig(version=f"{number}.0.0", name="bench", previous=previous)


def files_of(folder: Path) -> list[Path]:
    """What a repository stores outside Git: shards and meta files."""
    return sorted(folder.glob("*/*/*.parquet"))


# --- the client -------------------------------------------------------------------------------------------------------


def credentials(store: Path) -> dict[str, object]:
    return {
        "endpoint": f"local://{store.resolve()}",
        "token": "none",
        "token_expiry_unix_secs": int(time.time()) + 3600,
    }


def session() -> hf_xet.XetSession:
    return hf_xet.XetSession(hf_xet.XetConfig().with_config("telemetry.enabled", False))


def upload(paths: list[Path], store: Path) -> tuple[int, dict[Path, hf_xet.XetFileInfo]]:
    """Return the bytes that were sent, and what fetches each file again."""
    commit = session().new_upload_commit(**credentials(store))
    files = {path: commit.start_upload_file(str(path), hf_xet.SKIP_SHA256) for path in paths}
    report = commit.wait_to_finish()
    found = {path: file.result().xet_info for path, file in files.items()}
    return report.dedup_metrics.total_bytes_uploaded, found


def check_download(infos: dict[Path, hf_xet.XetFileInfo], store: Path, back: Path) -> None:
    """Fetch files from the store and compare them with what was uploaded."""
    back.mkdir()
    with session().new_file_download_group(**credentials(store)) as group:
        for number, info in enumerate(infos.values()):
            group.start_download_file(info, str(back / str(number)))
    for number, path in enumerate(infos):
        if digest(back / str(number)) != digest(path):
            raise SystemExit(f"{path} came back changed")
    shutil.rmtree(back)


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# --- pages ------------------------------------------------------------------------------------------------------------


def image_pages(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield (digest, bytes) of every page of image bytes."""
    with pq.ParquetFile(path) as shard, path.open("rb") as file:
        for number in range(shard.num_row_groups):
            column = _image_chunk(path, shard.metadata.row_group(number))
            file.seek(column.data_page_offset)
            chunk = file.read(column.total_compressed_size)
            position = 0
            while position < len(chunk):
                header = _read_page_header(chunk, position)
                stop = header.stop + header.size
                yield hashlib.sha256(chunk[position:stop]).digest(), stop - position
                position = stop


def new_pages(old: Path, changed: list[Path]) -> float:
    """The share of the changed shards' image pages that no shard of the old version has."""
    known = {page for path in old.glob("data/*/*.parquet") for page, _ in image_pages(path)}
    pages = [page for path in changed if "data" in path.parts for page in image_pages(path)]
    return sum(size for page, size in pages if page not in known) / sum(size for _, size in pages)


# --- the comparison ---------------------------------------------------------------------------------------------------


def crops_of_people(source: Source) -> dict[int, set[str]]:
    """The paths of each person of the train part, people of typical size first."""
    paths: dict[int, set[str]] = {}
    for sample in source.samples():
        if sample.split == "train":
            paths.setdefault(sample.pid, set()).add(sample.path)
    return dict(sorted(paths.items(), key=lambda item: (abs(len(item[1]) - TYPICAL), item[0])))


def edits(everybody: Source, newcomers: set[str], base: Path) -> list[Edit]:
    """One person of typical size of each shard goes; one crop of each; the newcomers come."""
    before = Part(everybody, newcomers)
    paths = crops_of_people(before)
    shard_of = {
        pid: path
        for path in base.glob("data/train/*.parquet")
        for pid in set(pq.read_table(path, columns=["pid"])["pid"].to_pylist())
    }
    victims = list({shard_of[pid]: pid for pid in reversed(paths)}.values())
    erased = set().union(*(paths[pid] for pid in victims))
    crops = {min(paths[pid]) for pid in victims}
    return [
        Edit("a person goes", Part(everybody, newcomers | erased), erased, times=len(victims)),
        Edit("a crop goes", Part(everybody, newcomers | crops), crops, times=len(victims)),
        Edit("1 % come", everybody, newcomers),
        Edit("1 % come, planned anew", everybody, newcomers, follows=False),
    ]


def measure(edit: Edit, base: Path, store: Path, work: Path) -> Traffic:
    """Pack the new version, upload what changed to where the old one is, and return what that cost."""
    new = work / "new"
    pack(edit.target, new, config(2, base if edit.follows else None))
    known = {digest(path) for path in files_of(base)}
    changed = [path for path in files_of(new) if digest(path) not in known]
    copy = work / "copy"
    shutil.copytree(store, copy)  # with what the client remembers of its own uploads
    sent, infos = upload(changed, copy)
    check_download(infos, copy, work / "back")
    pages = new_pages(base, changed)
    for folder in (new, copy):
        shutil.rmtree(folder)
    return Traffic(sent // edit.times, pages)


def compare_bytes(rules: tuple[Rule, ...], work: Path, num_files: int, seed: int) -> None:
    shutil.rmtree(work, ignore_errors=True)
    tree, base, store = work / "crops", work / "base", work / "store"
    make_tree(tree, num_files, seed=seed)
    # All on one continent: as many people in a shard as in a data set of full size.
    (tree / "cameras.csv").write_text("camid,continent\n" + "".join(f"{camid},asia\n" for camid in range(37)))
    everybody = open_source(tree)
    people = crops_of_people(everybody)
    newcomers = set().union(*list(people.values())[: max(1, round(len(people) / 100))])
    started = time.perf_counter()
    for number, rule in enumerate(rules):
        with applied(rule):
            pack(Part(everybody, newcomers), base, config(1))
            first, _ = upload(files_of(base), store)
            todo = edits(everybody, newcomers, base)
            if number == 0:
                describe(everybody, base, todo)
            groups = sum(pq.ParquetFile(path).num_row_groups for path in base.glob("data/train/*.parquet"))
            cells = [f"{first / 1e6:.0f}", str(groups)]
            for edit in todo:
                found = measure(edit, base, store, work)
                cells.append(f"{found.sent / 1e6:.1f} ({found.new_pages:.2f})")
        print(f"| {rule} | {' | '.join(cells)} |", flush=True)
        for folder in (base, store):
            shutil.rmtree(folder)
    print(f"({time.perf_counter() - started:.0f} s)")


def describe(source: Source, base: Path, todo: list[Edit]) -> None:
    """Print what the data set and the edits are, and the head of the table."""
    shards = sorted(base.glob("data/train/*.parquet"))
    rows = [pq.ParquetFile(path).metadata.num_rows for path in shards]
    people = len({pid for path in shards for pid in pq.read_table(path, columns=["pid"])["pid"].to_pylist()})
    num_bytes = sum(int(image_spans(path).length.sum()) for path in base.glob("data/*/*.parquet"))
    print(f"\n{num_bytes / 1e6:.0f} MB of images; train shards of {rows} rows with {people} people.")
    print(
        "MB sent for one edit by who published the old version (share of the changed shards' image pages that is new)"
    )
    for edit in todo:
        own = sum(len(source.read(path)) for path in edit.crops)
        print(f"- {edit.name}: {len(edit.crops)} crops, {own / 1e6:.1f} MB, {edit.times} times at once")
    print(f"\n| chunk | row groups | CDC | first MB | groups | {' | '.join(edit.name for edit in todo)} |")
    print(f"|{'---|' * (5 + len(todo))}")
