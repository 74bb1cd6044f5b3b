"""Packing as many crops as ENTIRe-ID has, for real: `make bench-scale`.

Trees of 10 k, 100 k, 1 M and 4.45 M crops of about 4 kB are made, packed and verified. The packing of 100 k is killed
(`kill -9`) at 25 random moments and must end in the same bytes; that of the largest is killed half-way, and goes on.
Every step is a process of the command line, and what it costs is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from measure import Run, measure
from trees import TOTAL_CROPS, make_tree

SIZES = (10_000, 100_000, 1_000_000, TOTAL_CROPS)
KILLED_SIZE, KILLS = 100_000, 25
MEAN_BYTES = 4_000
BYTES_ON_DISK = 8_192  # a file of about 4 kB takes one or two blocks of 4 KiB; and the inode


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the trees for the next run")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    check_disk(options.work, options.sizes)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"pyarrow {version('pyarrow')}, {options.jobs} job(s)\n")
    print("| crops | GB | step | wall s | CPU s | µs CPU a crop | crops/s | peak MB | shards |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for size in sorted(options.sizes):
        tree, out = options.work / f"crops-{size}", options.work / "out"
        clear(out)
        if not tree.exists():
            making = tree.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            make_tree(making, size, MEAN_BYTES)
            making.rename(tree)
        pack = [sys.executable, "-m", "entire_id", "pack", str(tree), str(out), "--json", "--jobs", str(options.jobs)]
        if size == max(options.sizes):
            row(size, out, "packed, killed half-way", kill_half_way(pack, out))
            row(size, out, "packed on to the end", measure(pack, options.work))
        else:
            row(size, out, "packed", measure(pack, options.work))
        verify = [sys.executable, "-m", "entire_id", "verify", str(out), "--jobs", str(os.cpu_count())]
        row(size, out, f"verified, {os.cpu_count()} jobs", measure(verify, options.work))
        manifest = json.loads((out / "manifest.json").read_bytes())
        if sum(shard["rows"] for shard in manifest["shards"]) != size:
            raise SystemExit("crops are missing")
        if size == KILLED_SIZE:
            expected = digests(out)
            clear(out)
            moments = kill_at_random(pack, out, KILLS)
            if digests(out) != expected:
                raise SystemExit("a killed run ended in other bytes")
            print(f"| {size:,} | | killed at {KILLS} moments, {moments}: the same bytes | | | | | | |", flush=True)
        clear(out)
        if not options.keep:
            shutil.rmtree(tree)


def check_disk(work: Path, sizes: list[int]) -> None:
    trees = sum(size * BYTES_ON_DISK for size in sizes if not (work / f"crops-{size}").exists())
    need = trees + max(sizes) * MEAN_BYTES * 11 // 10
    free = shutil.disk_usage(work).free
    print(f"needs {need / 1e9:.0f} GB in {work}, {free / 1e9:.0f} GB are free", file=sys.stderr)
    if free < need:
        raise SystemExit(1)


def clear(out: Path) -> None:
    for path in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def kill_half_way(pack: list[str], out: Path) -> Run:
    """Start packing, kill it when half of the shards are finished, and return what it cost until then."""
    notes = out.with_name(f"{out.name}.partial") / "notes"
    start, process = time.perf_counter(), subprocess.Popen(pack, stdout=subprocess.DEVNULL, start_new_session=True)
    total = TOTAL_CROPS // 22_500
    while process.poll() is None and len(list(notes.glob("*.json"))) < total // 2:
        time.sleep(0.2)
    if process.poll() is not None:
        raise SystemExit("packing ended before it was killed")
    os.killpg(process.pid, signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    total_s = usage.ru_utime + usage.ru_stime
    return Run(usage.ru_utime, total_s, time.perf_counter() - start, usage.ru_maxrss / 1024)


def kill_at_random(pack: list[str], out: Path, kills: int) -> str:
    """Start packing until it has been killed `kills` times, then let it end. Return the earliest and latest moment."""
    rng, moments, longest_s = random.Random(0), [], 4.0
    while len(moments) < kills:
        process = subprocess.Popen(pack, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        moment_s = rng.uniform(0, longest_s)
        try:
            process.wait(moment_s)
            clear(out)  # it had ended: from the start
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            moments.append(moment_s)
            if out.exists():
                clear(out)
    subprocess.run(pack, check=True, capture_output=True)
    return f"{min(moments):.1f} to {max(moments):.1f} s after the start"


def digests(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def row(size: int, out: Path, step: str, run: Run) -> None:
    folders = (out, out.with_name(f"{out.name}.partial") / "tree")
    shards = [path for folder in folders for path in folder.glob("data/*/*.parquet")]
    num_bytes = sum(path.stat().st_size for path in shards)
    cells = [
        f"{size:,}",
        f"{num_bytes / 1e9:.2f}",
        step,
        f"{run.wall_s:.0f}",
        f"{run.total_s:.0f}",
        f"{run.total_s / size * 1e6:.0f}",
        f"{size / run.wall_s:,.0f}",
        f"{run.peak_mb:.0f}",
        str(len(shards)),
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
