"""Time and memory from opening a data set of 4.45 million crops to its first batch: `make bench-startup`.

The manifest and the meta files are such as a data set of that size has. The shards are holes, with a picture where one
is read.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from draws import SHARD_ROWS, K, P, train_crowd
from PIL import Image

from entire_id.records import CAMERAS_FILE
from entire_id.schema import arrow_schema, meta_columns
from entire_id.shards.manifest import MANIFEST_FILE, FileEntry, Manifest, Shard, read_manifest
from entire_id.shards.parquet import write_meta
from entire_id.shards.plan import PlannedShard, plan_shards

ROUNDS = 5
SYSTEMS = {
    "pids alone": ("--measure",),
    "cameras and sequences": ("--measure", "--columns"),
    "a stream of one lane": ("--stream", "1"),
    "a stream of two lanes": ("--stream", "2"),
}
LENGTHS = (4_000, 12_000)  # bytes of an image
NUM_CAMERAS = 37


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 128), (90, 120, 60)).save(file, "JPEG")
    return file.getvalue()


def entry(folder: Path, path: str, rows: int, digest: str) -> FileEntry:
    return FileEntry(path, rows, (folder / path).stat().st_size, digest)


def write_picture(folder: Path, path: str, offset: int, data: bytes) -> None:
    with (folder / path).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def write_shard(folder: Path, planned: PlannedShard, pids: np.ndarray, image: bytes) -> tuple[Shard, list[FileEntry]]:
    """Write a shard of holes, but for its first image, and its meta file."""
    name = f"train/{planned.continent}-{planned.number:05d}.parquet"
    path, meta_path, num_rows = f"data/{name}", f"meta/{name}", len(planned.rows)
    rng = np.random.default_rng([planned.number, len(planned.continent)])
    lengths = rng.integers(*LENGTHS, num_rows, np.int32)
    offsets = np.cumsum(lengths + 4, dtype=np.int64) - lengths
    camids, frames = rng.integers(0, NUM_CAMERAS, num_rows, np.int32), rng.integers(0, 10**6, num_rows)
    checksums = [f"{number:016x}" for number in rng.integers(0, 2**64, num_rows, np.uint64).tolist()]
    checksums[0] = xxhash.xxh3_64_hexdigest(image.ljust(lengths[0], b"\0"))
    rows = zip(pids.tolist(), camids.tolist(), frames.tolist(), strict=True)
    columns = {
        "key": [f"train/{pid:05d}_c{camid:03d}s{pid % 9}_{frame:06d}" for pid, camid, frame in rows],
        "pid": pids,
        "camid": camids,
        "continent": [planned.continent] * num_rows,
        "seq": pids % 9,
        "frame": frames,
        "width": rng.integers(40, 200, num_rows, np.int32),
        "height": rng.integers(90, 400, num_rows, np.int32),
        "xxh3": checksums,
        "shard": [path] * num_rows,
        "offset": offsets,
        "length": lengths,
    }
    for place in (folder / path, folder / meta_path):
        place.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns, schema=arrow_schema(meta_columns()))
    write_meta(folder / meta_path, table)
    with (folder / path).open("wb") as file:
        file.truncate(int(offsets[-1] + lengths[-1]) + 8)
    write_picture(folder, path, int(offsets[0]), image)
    row_groups = tuple(np.diff(planned.group_stops, prepend=0).tolist())
    sizes = (int(lengths.sum()), table.nbytes, int(lengths.sum()))
    people = tuple(np.unique(pids).tolist())
    shard = Shard("train", planned.continent, path, meta_path, num_rows, *sizes, row_groups, people)
    meta_digest = hashlib.sha256((folder / meta_path).read_bytes()).hexdigest()
    return shard, [entry(folder, path, num_rows, "0" * 64), entry(folder, meta_path, num_rows, meta_digest)]


def build(folder: Path, num_people: int) -> None:
    """Write the data set, with pictures where the first batch is read."""
    rows = train_crowd(num_people, 0).rows()
    (folder / CAMERAS_FILE).write_text("camid,continent\n")
    files, shards, image = [entry(folder, CAMERAS_FILE, 0, "0" * 64)], [], picture()
    for planned in plan_shards(rows, SHARD_ROWS, 0):
        shard, written = write_shard(folder, planned, rows.pid[planned.rows], image)
        shards.append(shard)
        files += written
    files.sort(key=lambda file: file.path)
    manifest = Manifest("startup", "1.0.0", "parquet", 0, SHARD_ROWS, tuple(shards), tuple(files))
    (folder / MANIFEST_FILE).write_text(manifest.to_json())
    for given in (True, False):
        dataset, sampler = open_all(folder, with_columns=given)
        index = dataset.index
        for row in next(iter(sampler)):
            path = index.shards[index.shard_numbers[row]].path
            write_picture(folder, path, int(index.offsets[row]), image)


def open_all(folder: Path, *, with_columns: bool):
    from entire_id import CropDataset, PKSampler

    dataset = CropDataset(folder, "train")
    columns = {"camids": dataset.camids, "seqs": dataset.seqs} if with_columns else {}
    return dataset, PKSampler(dataset.pids, P, K, rank=0, world_size=1, **columns)


def memory_mb(name: str) -> float:
    """Return the memory of this process, or its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure(folder: Path, *, with_columns: bool) -> None:
    """Open the data set and take a batch; print what each step cost."""
    from torch.utils.data import DataLoader

    from entire_id import CropDataset, PKSampler

    steps = []

    def note(name: str) -> None:
        place = {"step": name, "wall_s": time.perf_counter(), "cpu_s": time.process_time()}
        steps.append(place | {"memory_mb": memory_mb("VmRSS"), "peak_mb": memory_mb("VmHWM")})

    note("imports")
    dataset = CropDataset(folder, "train")
    note("CropDataset")
    columns = {"camids": dataset.camids, "seqs": dataset.seqs} if with_columns else {}
    sampler = PKSampler(dataset.pids, P, K, rank=0, world_size=1, **columns)
    note("PKSampler")
    batch = next(iter(DataLoader(dataset, batch_sampler=sampler)))
    note("first batch")
    if tuple(batch["image"].shape) != (P * K, 128, 64, 3):
        raise SystemExit(f"a batch of {batch['image'].shape}")
    print(json.dumps({"rows": len(dataset), "shards": len(dataset.index.shards), "steps": steps}))


def measure_stream(folder: Path, lanes: int) -> None:
    """Open a stream and take a batch, then one from the middle of the epoch; print what each step cost."""
    import torch.utils.data  # noqa: F401 imports are not part of what is measured

    import entire_id.loading.stream  # noqa: F401
    from entire_id import PKStream, StreamOptions

    steps = []

    def note(name: str) -> None:
        place = {"step": name, "wall_s": time.perf_counter(), "cpu_s": time.process_time()}
        steps.append(place | {"memory_mb": memory_mb("VmRSS"), "peak_mb": memory_mb("VmHWM")})

    def opened() -> PKStream:
        return PKStream(folder, "train", P, K, decode=False, options=StreamOptions(lanes=lanes), rank=0, world_size=1)

    note("imports")
    stream = opened()
    note("PKStream")
    next(iter(stream))
    note("first batch")
    num_rows = sum(shard.rows for shard in read_manifest(folder).shards)
    resumed = opened()
    resumed.load_state_dict(stream.state_dict(num_rows // (P * K) // 2))
    next(iter(resumed))
    note("opened again, resumed in the middle of the epoch, a batch")
    print(json.dumps({"rows": num_rows, "shards": len(read_manifest(folder).shards), "steps": steps}))


def run(folder: Path, *how: str) -> dict:
    command = [sys.executable, __file__, str(folder), *how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)


def show(runs: list[dict]) -> None:
    """Print the median of each step."""
    print("| step | wall s | CPU s | memory, MB above imports | peak |\n|---|---|---|---|---|")
    steps = np.array([[list(step.values())[1:] for step in run["steps"]] for run in runs])
    base = steps[:, :1]
    parts = np.median(np.diff(steps[:, :, :2], axis=1), axis=0)
    memory = np.median(steps[:, :, 2:] - base[:, :, 2:3], axis=0)
    names = [step["step"] for step in runs[0]["steps"]]
    for name, (wall, cpu), (now, peak) in zip(names[1:], parts, memory[1:], strict=True):
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {now:.0f} | {peak:.0f} |")
    wall, cpu = np.median(steps[:, -1, :2] - steps[:, 0, :2], axis=0)
    print(f"| together | {wall:.2f} | {cpu:.2f} | | |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=10_799)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--columns", action="store_true")
    parser.add_argument("--stream", type=int, metavar="LANES")
    options = parser.parse_args()
    if options.measure:
        measure(options.folder, with_columns=options.columns)
        return
    if options.stream:
        measure_stream(options.folder, options.stream)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {version('numpy')}")
    options.folder.mkdir(parents=True)
    try:
        build(options.folder, options.people)
        for name, how in SYSTEMS.items():
            runs = [run(options.folder, *how) for _ in range(ROUNDS)]
            load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
            print(f"\n{name}: {runs[0]['rows']:,} rows in {runs[0]['shards']} shards, load average {load}\n")
            show(runs)
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
