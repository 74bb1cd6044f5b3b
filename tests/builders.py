"""What the tests build their data sets from."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from entire_id.records import RawFile, Rejected, Sample
from entire_id.shards.pack import PackConfig, PackReport, pack
from entire_id.sources.layouts import open_source
from entire_id.staging import beside


def image_bytes(seed: int = 0, size: tuple[int, int] = (24, 48), kind: str = "JPEG") -> bytes:
    """Return a small picture that no other seed gives."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.integers(0, 256, 3) + rng.integers(-20, 20, (size[1], size[0], 3)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def write_crops(folder: Path, names: list[str], first_seed: int = 0) -> Path:
    """Write a picture for each of the relative `names`, PNG where the name says so."""
    for number, name in enumerate(names, first_seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, kind="PNG" if name.endswith(".png") else "JPEG"))
    return folder


def crop_names(people: int = 4, cameras: tuple[int, ...] = (0, 1, 21), shots: int = 3) -> list[str]:
    """Return official names of a test part: each person under each camera, the first shot as query."""
    names = []
    for pid in range(people):
        for camid in cameras:
            for shot in range(shots):
                folder = "query" if shot == 0 else "bounding_box_test"
                names.append(f"{folder}/{pid:05d}_c{camid:03d}s0_{760487 + 3 * shot}.jpg")
    return names


CAMERAS = "camid,continent,scene\n0,asia,street\n1,asia,mall\n21,europe,beach\n"


def pack_folder(source: Path, out: Path, **options: object) -> Path:
    """Pack and return `out`."""
    pack(open_source(source), out, PackConfig(**{"name": "entire-id"} | options))
    return out


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder`, hidden ones too, and every folder as no bytes."""
    return {
        path.relative_to(folder).as_posix(): b"" if path.is_dir() else path.read_bytes() for path in folder.rglob("*")
    }


def many_crops(folder: Path, people: int, shots: int) -> Path:
    """Write many small files quickly: one picture each, told apart by a number behind its end."""
    picture = image_bytes()
    for split in ("query", "bounding_box_test"):
        (folder / split).mkdir(parents=True)
        for pid in range(people):
            for shot in range(shots if split != "query" else 1):
                name = f"{pid:05d}_c{shot % 3:03d}s0_{shot}.jpg"
                (folder / split / name).write_bytes(picture + f"{split}{pid}/{shot}".encode())
    return folder


class Wrapped:
    """A source that a test may spoil: all of another's, to be overridden."""

    def __init__(self, path: Path | str) -> None:
        self._source = open_source(path)
        self.name, self.cameras = self._source.name, self._source.cameras

    def samples(self) -> Iterator[Sample | Rejected]:
        return self._source.samples()

    def read(self, path: str) -> RawFile:
        return self._source.read(path)

    def stamp(self, path: str) -> tuple[int, ...]:
        return self._source.stamp(path)


class Slow(Wrapped):
    """A source that takes a while for every crop, in every process."""

    def __init__(self, path: Path | str, wait_s: float) -> None:
        super().__init__(path)
        self._wait_s = wait_s

    def read(self, path: str) -> RawFile:
        time.sleep(self._wait_s)
        return super().read(path)


class StoppedError(KeyboardInterrupt):
    """Ctrl-C, as far as packing can tell."""


def stop_pack(source: Path, out: Path, after: int, **options: object) -> None:
    """Pack until `after` crops are written, then be interrupted; the next run may go on."""

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing" and done >= after:
            raise StoppedError

    try:
        pack(open_source(source), out, PackConfig(**{"name": "entire-id"} | options), interrupt)
    except StoppedError:
        assert not out.exists()
        assert beside(out, ".partial").is_dir()
    else:
        raise AssertionError(f"nothing stopped it before {after} crops")


def go_on(source: Path, out: Path, **options: object) -> PackReport:
    """Pack and return the report."""
    return pack(open_source(source), out, PackConfig(**{"name": "entire-id"} | options))


def settle() -> None:
    """Wait until files that were just made are older than the clock is exact: younger ones are always read anew."""
    time.sleep(0.15)


# For `sys.addaudithook`: counts every change that Python makes to the folder of `out`, and dies just before step number
# `last`, or before the first event so named.
WATCH = """
import os, signal, sys
from pathlib import Path

home = str(Path(out).parent)
steps = 0
events = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link")

def watch(event, arguments):
    global steps
    if event not in events or not str(arguments[0]).startswith(home):
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    steps += 1
    if last in (str(steps), event):
        os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_RUN = f"""
import json, sys
from pathlib import Path
from entire_id.shards.pack import PackConfig, pack
from entire_id.sources.layouts import open_source
from entire_id.staging import beside

source, out, last, options = sys.argv[1:]
options = json.loads(options)
if options.get("previous"):
    options["previous"] = Path(options["previous"])
{WATCH}
if __name__ == "__main__":
    sys.addaudithook(watch)
    pack(open_source(Path(source)), Path(out), PackConfig(**{{"name": "entire-id"}} | options))
    print(steps)
"""


def run_until(last: int | str, source: Path, out: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Pack in a process that kills itself just before its step number `last`, or before the first event so named."""
    texts = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    command = [sys.executable, "-c", KILLED_RUN, str(source), str(out), str(last), json.dumps(texts)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def write_zip(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write an archive of `entries` and return `path`."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def packed_images(out: Path) -> dict[str, bytes]:
    """Return key → image bytes of a packed data set, read where `meta` says they lie."""
    images = {}
    for meta in sorted(out.glob("meta/*/*.parquet")):
        for row in pq.read_table(meta, partitioning=None).to_pylist():
            with (out / row["shard"]).open("rb") as shard:
                shard.seek(row["offset"])
                images[row["key"]] = shard.read(row["length"])
    return images


def rejected_rows(out: Path) -> list[dict[str, str]]:
    """Return the lines of `OUT.rejected.csv`: path, reason, detail; none where there is no such file."""
    path = out.with_name(out.name + ".rejected.csv")
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def resize_disk(disk: Path, num_bytes: int) -> None:
    """Give the file system of the fixture `small_disk` another size."""
    subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(disk)], check=True)


def ended_well(done: subprocess.CompletedProcess[str]) -> bool:
    """Tell whether processes that a launcher of torch started did their work.

    torch 2.13 now and then aborts when such a process ends, in threads of gloo that outlive their group: after the last
    line of the program, which is all that a test can ask about.
    """
    return done.returncode == 0 or "terminate called without an active exception" in done.stderr
