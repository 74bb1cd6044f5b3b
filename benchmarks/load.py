"""Loading beside other systems: `make bench-load`. What comes out is compared before times count.

Every run is a process of its own, and the systems take turns, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from trees import make_tree

HERE = Path(__file__).parent
RIVALS, STREAMS = (HERE.parent / name / "bin" / "python" for name in (".venv-rivals", ".venv-rivals-streams"))
OURS = Path(sys.executable)
MEAN_BYTES, GRAIN, CROPS_A_PERSON = 8_000, 5, 32
# What each is called, and which environment it runs in.
SYSTEMS = {
    "limit": ("decode + resize from memory, one process", OURS),
    "map": ("entire-id, CropDataset", OURS),
    "pk": ("entire-id, CropDataset + PKSampler", OURS),
    "stream": ("entire-id, PKStream", OURS),
    "uniform": ("entire-id, PKStream, uniform", OURS),
    "folder-simplejpeg": ("folder of files, simplejpeg", OURS),
    "folder-pil": ("folder of files, Pillow", OURS),
    "datasets-map-simplejpeg": ("datasets, map-style, simplejpeg", RIVALS),
    "datasets-map": ("datasets, map-style, Image()", RIVALS),
    "datasets-stream": ("datasets, streaming, shuffle(1000), Image()", RIVALS),
    "webdataset": ("webdataset, shuffle(1000)", RIVALS),
    "litdata": ("litdata", STREAMS),
    "mds": ("mosaicml-streaming (MDS)", STREAMS),
}


class LeftOut(Exception):
    """A system is not installed."""


def run(verb: str, system: str, folder: Path, workers: int = 0) -> dict:
    """Run `load_one.py` in a process of its own, with one thread for numpy and torch."""
    python = SYSTEMS[system][1]
    if not python.exists():
        raise LeftOut(f"no environment {python.parents[1].name}")
    command = [python, HERE / "load_one.py", verb, system, folder, str(workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{verb} {system}: {done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    if "missing" in result:
        raise LeftOut(result["missing"])
    return result


def make_crops(folder: Path, num_crops: int) -> None:
    """Draw crops whose JPEG data, not only whose files, is as large as that of real ones, and pack them."""
    if not (folder / "ours").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make_tree(folder / "crops", num_crops, MEAN_BYTES, grain=GRAIN, people=num_crops // CROPS_A_PERSON)
        command = [sys.executable, "-m", "entire_id", "pack", folder / "crops", folder / "ours"]
        subprocess.run(command, check=True, capture_output=True)


def compare(system: str, folder: Path, workers: int) -> int:
    """Compare an epoch with the limit's, crop by crop; return how many more it gives.

    Whoever pads may repeat crops; nobody may lose one or give another.
    """
    epoch = np.load(run("check", system, folder, workers)["digests"])
    expected = np.load(folder / "digests-limit-0.npy")
    right = np.isin(epoch, expected)
    (kinds, counts), (all_kinds, all_counts) = (
        np.unique(each, return_counts=True) for each in (epoch[right], expected)
    )
    shown = np.zeros(len(all_kinds), int)
    shown[np.searchsorted(all_kinds, kinds)] = counts
    lost = int(np.maximum(all_counts - shown, 0).sum())
    if lost or not right.all():
        what = f"{lost:,} of {len(expected):,} crops never came, {np.sum(~right):,} others did"
        raise SystemExit(f"{system}, {workers} workers: {what}")
    return len(epoch) - len(expected)


def bench(folder: Path, systems: list[str], workers: list[int], rounds: int) -> None:
    run("check", "limit", folder)
    extra: dict[str, list[int]] = {}
    for system in systems:
        try:
            run("prepare", system, folder)
            extra[system] = [compare(system, folder, count) for count in counts(system, workers)]
        except LeftOut as reason:
            print(f"{SYSTEMS[system][0]}: left out, {reason}", flush=True)
    runs: dict[tuple[str, int], list[dict]] = {}
    for number in range(rounds):
        for system in extra:
            for count in counts(system, workers):
                one = run("time", system, folder, count)
                print(f"round {number + 1}, {system}, {count}: {one['wall_s']:.2f} s", file=sys.stderr, flush=True)
                runs.setdefault((system, count), []).append(one)
    report(runs, extra, workers)


def counts(system: str, workers: list[int]) -> list[int]:
    return [0] if system == "limit" else workers


def report(runs: dict[tuple[str, int], list[dict]], extra: dict[str, list[int]], workers: list[int]) -> None:
    """Print a table, the least CPU time first; `more` crops are those that an epoch repeats, by number of workers."""
    heads = [f"{what}, {count} workers" for count in workers for what in ("images per CPU s", "images/s")]
    print(f"\n| system | {' | '.join(heads)} | × limit | more |\n|---|{'---|' * len(heads)}---|---|")
    rates = {
        key: [statistics.median(one["images"] / one[cost] for one in found) for cost in ("cpu_s", "wall_s")]
        for key, found in runs.items()
    }
    limit = rates.get(("limit", 0), [float("nan")])[0]
    for system in sorted(extra, key=lambda system: -rates[system, counts(system, workers)[0]][0]):
        cells = [f"{rate:,.0f}" for count in workers for rate in rates.get((system, count), ())]
        cells += ["–"] * (len(heads) - len(cells))
        share = rates[system, counts(system, workers)[0]][0] / limit
        more = ", ".join(str(number) for number in extra[system])
        print(f"| {SYSTEMS[system][0]} | {' | '.join(cells)} | {share:.2f} | {more} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--crops", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    options = parser.parse_args()
    folder = options.work / f"crops-{options.crops}"
    make_crops(folder, options.crops)
    sizes = [path.stat().st_size for path in (folder / "crops" / "bounding_box_train").iterdir()]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("numpy", "pillow", "simplejpeg", "torch")), end="; ")
    print(f"{len(sizes):,} crops, {np.mean(sizes):,.0f} bytes on average; {options.rounds} rounds, medians", flush=True)
    bench(folder, options.systems, options.workers, options.rounds)


if __name__ == "__main__":
    main()
