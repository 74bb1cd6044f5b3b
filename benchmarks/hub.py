"""What travels when versions are published and read: `make bench-hub`. A Hub on loopback, the real client.

A data set is published, then one more version of it: with 1 % and 10 % more people, and without one of its people. With
LFS whole files travel, with Xet the chunks that the storage does not have. Then crops are read by range.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from order_bytes import Part  # noqa: E402
from trees import make_tree  # noqa: E402

from entire_id import CropDataset, PKStream  # noqa: E402
from entire_id.hub.card import write_card  # noqa: E402
from entire_id.hub.facts import OwnerFacts  # noqa: E402
from entire_id.hub.publish import plan_publish, publish  # noqa: E402
from entire_id.hub.repo import HubRepo  # noqa: E402
from entire_id.shards.erase import EraseRequest, erase  # noqa: E402
from entire_id.shards.manifest import read_manifest  # noqa: E402
from entire_id.shards.pack import PackConfig, pack  # noqa: E402
from entire_id.sources.layouts import open_source  # noqa: E402

from hub_server import HubServer, hub_server  # noqa: E402

NAME = "entire/entire-id"
FACTS = OwnerFacts("lab-1.0", "https://lab.org/licence")
MEAN_BYTES = 8_000


def person_of(path: str) -> tuple[str, str]:
    folder, _, name = path.partition("/")
    return "train" if folder.endswith("train") else "test", name[:5]


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pack_part(raw: Path, out: Path, left_out: set[str], version: str, previous: Path | None = None) -> None:
    if not out.exists():
        source = Part(open_source(raw), left_out)
        pack(source, out, PackConfig(version=version, name="entire-id", jobs=2, previous=previous))
        write_card(out, FACTS, previous=previous)


def make_versions(work: Path, num_crops: int) -> tuple[Path, dict[str, Path]]:
    """Return the base, and name → the version that follows it."""
    raw = work / "raw"
    if not raw.exists():
        make_tree(raw, num_crops, MEAN_BYTES)
    paths = [sample.path for sample in open_source(raw).samples()]
    people = sorted({person_of(path) for path in paths})
    order = [people[number] for number in np.random.default_rng(0).permutation(len(people)).tolist()]
    more = {"+1 % people": set(order[: len(people) // 100]), "+10 % people": set(order[: len(people) // 10])}
    new = more["+10 % people"]
    base = work / "base"
    pack_part(raw, base, {path for path in paths if person_of(path) in new}, "1.0.0")
    versions = {}
    for name, come in more.items():
        versions[name] = work / f"plus-{len(come)}"
        missing = {path for path in paths if person_of(path) in new - come}
        pack_part(raw, versions[name], missing, "1.1.0", base)
    versions["one person erased"] = work / "erased"
    if not versions["one person erased"].exists():
        counts: dict[tuple[str, str], int] = {}
        for path in paths:
            counts[person_of(path)] = counts.get(person_of(path), 0) + 1
        typical = min(set(people) - new, key=lambda person: abs(counts[person] - 411))
        erase(base, versions["one person erased"], EraseRequest(people=(f"{typical[0]}/{int(typical[1])}",), jobs=2))
        write_card(versions["one person erased"], FACTS, previous=base)
    return base, versions


@contextmanager
def a_hub(work: Path, *, xet: bool) -> Iterator[HubServer]:
    patch = pytest.MonkeyPatch()
    shutil.rmtree(work / "site", ignore_errors=True)
    try:
        with hub_server(work / "site", xet=xet) as hub:
            hub.patch_client(patch, work / "home")
            yield hub
    finally:
        patch.undo()
        shutil.rmtree(work / "site", ignore_errors=True)
        shutil.rmtree(work / "home", ignore_errors=True)


def release(folder: Path) -> float:
    start = time.perf_counter()
    repo = HubRepo(NAME)
    publish(folder, repo, plan_publish(folder, repo))
    return time.perf_counter() - start


def travelled(hub: HubServer) -> int:
    """Return the bytes that the storage got so far."""
    if hub.xet:
        return hub.store.stored_chunks()
    return sum(record.bytes_in for record in hub.asked(r"^PUT "))


def bench_traffic(work: Path, base: Path, versions: dict[str, Path]) -> None:
    whole, manifest = folder_bytes(base), read_manifest(base)
    print(f"\nbase: {manifest.num_rows:,} crops, {whole / 1e6:,.0f} MB, {len(manifest.shards)} shards\n")
    print("| version | changed or new files, MB | LFS, MB | of the set | Xet, MB | of the set |")
    print("|---|---|---|---|---|---|")
    known = {entry.sha256 for entry in manifest.files}
    for name, folder in versions.items():
        changed = sum(entry.bytes for entry in read_manifest(folder).files if entry.sha256 not in known)
        sent = []
        for xet in (False, True):
            with a_hub(work, xet=xet) as hub:
                release(base)
                before = travelled(hub)
                release(folder)
                sent.append(travelled(hub) - before)
                check(hub, folder)
        cells = " | ".join(f"{number / 1e6:,.1f} | {number / whole:.1%}" for number in sent)
        print(f"| {name} | {changed / 1e6:,.1f} | {cells} |", flush=True)


def check(hub: HubServer, folder: Path) -> None:
    """Compare what the Hub lists with the folder."""
    tree = hub.tree(NAME, "main")
    for entry in read_manifest(folder).files:
        if tree[entry.path].size != entry.bytes or tree[entry.path].sha256 not in ("", None, entry.sha256):
            raise SystemExit(f"{entry.path} is not what was published")


def bench_reading(work: Path, base: Path, num_read: int) -> None:
    import datasets

    raw_image = datasets.Image(decode=False)
    with a_hub(work, xet=False) as hub:
        release(base)
        num_rows = read_manifest(base).splits["train"].rows
        rows = np.random.default_rng(1).choice(num_rows, num_read, replace=False)

        def fetched() -> int:
            return sum(record.bytes_out for record in hub.asked("^GET /datasets/"))

        def by_range() -> tuple[str, int]:
            crops = CropDataset(NAME, "train", decode=False)
            meta = fetched()
            found = [item["image"] for some in np.array_split(rows, 20) for item in crops.__getitems__(some.tolist())]
            what = f"CropDataset, {num_read:,} crops anywhere; labels and offsets are {meta / 1e6:.1f} MB of it"
            return what, sum(map(len, found))

        def by_stream() -> tuple[str, int]:
            stream = PKStream(NAME, "train", 16, 4, decode=False)
            sizes = {row: len(data) for batch in stream for row, data in zip(batch["row"].tolist(), batch["image"])}
            return "PKStream, an epoch", sum(sizes.values())

        def plain() -> datasets.IterableDataset:
            return datasets.load_dataset(NAME, split="train", streaming=True).cast_column("image", raw_image)

        def by_datasets() -> tuple[str, int]:
            found = sum(len(row["image"]["bytes"]) for row in plain().take(num_read))
            return f"datasets, streaming, the first {num_read:,} rows", found

        def by_datasets_shuffled() -> tuple[str, int]:
            rows = plain().shuffle(seed=0, buffer_size=1000).take(num_read)
            return f"datasets, streaming, shuffle(1000), {num_read:,} rows", sum(
                len(row["image"]["bytes"]) for row in rows
            )

        print("\n| read | crops, MB | fetched, MB | × | requests | s |\n|---|---|---|---|---|---|")
        for read in (by_range, by_stream, by_datasets, by_datasets_shuffled):
            hub.requests.clear()
            start = time.perf_counter()
            what, wanted = read()
            took, asked = time.perf_counter() - start, len(hub.asked("^GET /datasets/"))
            cells = f"{wanted / 1e6:,.1f} | {fetched() / 1e6:,.1f} | {fetched() / wanted:.2f} | {asked:,} | {took:.1f}"
            print(f"| {what} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--crops", type=int, default=255_000)
    parser.add_argument("--read", type=int, default=1_000)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    base, versions = make_versions(options.work, options.crops)
    bench_traffic(options.work, base, versions)
    bench_reading(options.work, base, options.read)


if __name__ == "__main__":
    main()
