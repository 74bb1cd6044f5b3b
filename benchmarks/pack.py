"""Packing beside other systems: `make bench-pack`. Every output is read back and compared before its time counts."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
from measure import Run, measure
from trees import make_tree

HERE = Path(__file__).parent
RIVALS = HERE.parent / ".venv-rivals" / "bin" / "python"
SHA256 = """
import hashlib, pathlib, sys
for path in pathlib.Path(sys.argv[1]).rglob("*.parquet"):
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
"""
RIVAL_SYSTEMS = ("webdataset", "datasets", "lance")


def digest_sum(images) -> int:
    """A number that depends on the images, not on their order."""
    total = 0
    for image in images:
        total = (total + int.from_bytes(hashlib.sha256(image).digest()[:16], "big")) % 2**128
    return total


def source_images(source: Path):
    for path in source.glob("*/*.jpg"):
        yield path.read_bytes()


def our_images(out: Path):
    for path in out.glob("data/*/*.parquet"):
        for batch in pq.ParquetFile(path).iter_batches(500, columns=["image"]):
            yield from batch["image"].field("bytes").to_pylist()


def tar_images(out: Path):
    with tarfile.open(out, "r|") as archive:
        for member in archive:
            if member.name.endswith(".jpg"):
                yield archive.extractfile(member).read()


def commands(source: Path, out: Path) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "entire_id", "pack", str(source), str(out)]
    systems: dict[str, list[str]] = {
        "tar": ["tar", "cf", str(out), "-C", str(source), "."],
        "entire-id, 1 job": ours,
        "entire-id, 2 jobs": [*ours, "--jobs", "2"],
    }
    for system in RIVAL_SYSTEMS if RIVALS.exists() else ():
        if subprocess.run([RIVALS, "-c", f"import {system}"], capture_output=True).returncode:
            print(f"{system}: not installed, left out")
            continue
        systems[system] = [str(RIVALS), str(HERE / "rivals_pack.py"), system, str(source), str(out)]
    return systems


def clear(out: Path) -> None:
    for path in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check(system: str, source: Path, out: Path, expected: int) -> None:
    """Compare every image that a system wrote with the source's."""
    if system == "tar":
        found = digest_sum(tar_images(out))
    elif system.startswith("entire-id"):
        found = digest_sum(our_images(out))
    else:
        command = [RIVALS, HERE / "rivals_pack.py", f"check-{system}", source, out]
        found = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if found != expected:
        raise SystemExit(f"{system}: what it wrote is not what it read")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    need = options.files * 7_900 * 4
    options.work.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(options.work).free < need:
        raise SystemExit(f"{need / 1e9:.0f} GB are needed in {options.work}")
    source, out = options.work / f"crops-{options.files}", options.work / "out"
    if not source.exists():
        make_tree(source, options.files)
    expected = digest_sum(source_images(source))  # warms the page cache, too
    runs: dict[str, list[Run]] = {}
    for round_number in range(options.rounds):
        for system, command in commands(source, out).items():
            clear(out)
            if system in RIVAL_SYSTEMS:
                out.mkdir()
            runs.setdefault(system, []).append(measure(command, options.work))
            if round_number == 0:
                check(system, source, out, expected)
                if system == "entire-id, 1 job":
                    digests = measure([sys.executable, "-c", SHA256, str(out)], options.work)
    clear(out)
    report(options.files, sum(path.stat().st_size for path in source.glob("*/*.jpg")), runs, digests)


def report(files: int, num_bytes: int, runs: dict[str, list[Run]], digests: Run) -> None:
    names = {name: statistics.median(run.total_s for run in found) for name, found in runs.items()}
    print(f"{files:,} files, {num_bytes / 1e9:.2f} GB; {len(runs['tar'])} rounds, medians; {platform.machine()},")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, pyarrow {version('pyarrow')}\n")
    print("| system | user CPU s | total CPU s | × tar | wall s | peak MB |\n|---|---|---|---|---|---|")
    for name, found in sorted(runs.items(), key=lambda item: names[item[0]]):
        row = [statistics.median(getattr(run, field) for run in found) for field in Run.__dataclass_fields__]
        print(
            f"| {name} | {row[0]:.1f} | {row[1]:.1f} | {names[name] / names['tar']:.1f} | {row[2]:.1f} | {row[3]:.0f} |"
        )
    ratio = digests.total_s / names["tar"]
    print(f"\nSHA-256 of what entire-id wrote: {digests.total_s:.1f} CPU s, {ratio:.1f} × tar by itself.")


if __name__ == "__main__":
    main()
