"""Evaluation beside the plain product and other tools: `make bench-eval`. Results are compared before times count.

Every run is a process of its own, and the systems take turns, so that what else the machine does meets all of them.
fast-reid joins in where RANK_CYLIB names the `evaluation/rank_cylib` of a checkout, built for the Python of the rivals.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from embeddings import SIZES

HERE = Path(__file__).parent
RIVALS = HERE.parent / ".venv-rivals" / "bin" / "python"
TITLES = {
    "product": "plain product, the same blocks",
    "product-512": "plain product, blocks of 512 queries",
    "numba": "entire-id, numba",
    "numpy": "entire-id, numpy",
    "classic": "argsort of the whole matrix",
    "fastreid": "fast-reid, Cython",
    "torchmetrics": "torchmetrics",
}
ONCE = {"classic", "torchmetrics"}  # so slow that one round says enough
TOLERANCE = 2e-5  # between tools: their scores differ in the last bit, and their sums are float32


def systems_of(size: str) -> list[str]:
    """What fits into memory and patience."""
    more = {"A": ["product-512", "classic", "torchmetrics"], "B": ["product-512"], "C": []}
    peer = ["fastreid"] if "RANK_CYLIB" in os.environ else []
    return ["product", "numba", "numpy", *peer, *more[size]]


def measure(system: str, folder: Path) -> dict | None:
    """Run a system in a process of its own; None where it is not installed."""
    python = RIVALS if system in {"fastreid", "torchmetrics"} else Path(sys.executable)
    if not python.exists():
        print(f"{system}: not installed, left out")
        return None
    command = [python, HERE / "evaluate_one.py", system, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def bench(size: str, folder: Path, rounds: int) -> None:
    # In another process: a child's peak of memory counts from what its parent held.
    subprocess.run([sys.executable, HERE / "embeddings.py", folder, size], check=True)
    runs: dict[str, list[dict]] = {}
    for number in range(rounds):
        for system in systems_of(size):
            if number and system in ONCE:
                continue
            run = measure(system, folder)
            if run is not None:
                print(f"{size}, round {number + 1}, {system}: {run['wall_s']:.2f} s", file=sys.stderr, flush=True)
                runs.setdefault(system, []).append(run)
    results = {system: tuple(found[0]["result"]) for system, found in runs.items() if found[0]["result"]}
    expected = results["numpy"]
    for system, found in results.items():
        if max(abs(one - other) for one, other in zip(found, expected)) > TOLERANCE:
            raise SystemExit(f"{size}: {system} gives {found}, entire-id {expected}")
    report(size, runs, expected)


def report(size: str, runs: dict[str, list[dict]], result: tuple[float, float]) -> None:
    shape = SIZES[size]
    features_mb = runs["product"][0]["features_mb"]
    print(
        f"\n{size}: {shape.num_query:,} × {shape.num_gallery:,}, features {features_mb:,.0f} MB; mAP {result[0]:.5f}, "
        f"Rank-1 {result[1]:.5f}; {len(runs['product'])} rounds, medians\n"
    )
    print("| system | wall s | × plain product | CPU s | MB above features |\n|---|---|---|---|---|")
    medians = {
        system: {name: statistics.median(run[name] for run in found) for name in ("wall_s", "cpu_s", "above_mb")}
        for system, found in runs.items()
    }
    limit = medians["product"]["wall_s"]
    for system, one in medians.items():
        rounds = " (once)" if system in ONCE else ""
        print(
            f"| {TITLES[system]}{rounds} | {one['wall_s']:.2f} | {one['wall_s'] / limit:.2f} | {one['cpu_s']:.2f} | "
            f"{one['above_mb']:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("numpy", "numba")))
    for size in options.sizes:
        bench(size, options.work / f"features-{size}", options.rounds)


if __name__ == "__main__":
    main()
