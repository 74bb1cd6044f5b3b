"""Streaming over HTTP on loopback, where every request takes 50 ms: `make bench-stream`."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote
from urllib.request import urlopen

import numpy as np
from trees import make_tree

P, K = 16, 4
DELAY_S = 0.05
DEFAULTS = {"pool_rows": 8_192, "unit_groups": 4, "prefetch_units": 2}
GRID = [dict(zip(DEFAULTS, values)) for values in itertools.product((4_096, 8_192), (1, 4), (0, 2, 4))]
COUNTS = "/-/counts"


# --- the server, in a process of its own ---


class Handler(BaseHTTPRequestHandler):
    """Gives files and ranges of them, late, and counts them."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    counts: ClassVar = Counter(requests=0, bytes=0, label_bytes=0)
    lock = threading.Lock()

    def log_message(self, *_: object) -> None:
        """Nothing is said."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        if self.path == COUNTS:
            with self.lock:
                body = json.dumps(self.counts).encode()
                self.counts.subtract(dict(self.counts))
            self.send(200, body)
        else:
            self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        time.sleep(DELAY_S)
        path = self.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            self.send(404, b"")
            return
        size = path.stat().st_size
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(span[1]), min(int(span[2] or size) + 1, size)) if span else (0, size)
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(stop - start) if with_body else b""
        with self.lock:
            self.counts.update(requests=1, bytes=len(body), label_bytes=len(body) * self.path.startswith("/meta/"))
        headers = {"Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
        self.send(
            206 if span else 200,
            body,
            headers | ({"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if span else {}),
        )

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # clients with many threads connect at once

    def handle_error(self, *_: object) -> None:
        """Clients hang up."""


def serve(folder: Path) -> None:
    Handler.folder = folder
    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, __file__, str(folder), "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


# --- one epoch, in a process of its own ---


def thumbnail(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Return pixels of one size, so that a batch is one array, by the cheapest way there is."""
    rows, columns = (np.linspace(0, size - 1, num).astype(int) for size, num in zip(pixels.shape, (128, 64)))
    return pixels[rows][:, columns]


def our_batches(url: str, options: dict, workers: int):
    from torch.utils.data import DataLoader

    from entire_id import PKStream, StreamOptions

    mixing = StreamOptions(**{name: value for name, value in options.items() if name != "decode"})
    what = {"transform": thumbnail} if options.get("decode") else {"decode": False}
    stream = PKStream(url, "train", P, K, **what, options=mixing, rank=0, world_size=1)
    for batch in DataLoader(stream, batch_size=None, num_workers=workers):
        yield int((~batch["padded"]).sum())


def plain_batches(url: str, _: dict, workers: int):
    """Rows in the order of the shards, without identity batches."""
    from datasets import Image, load_dataset
    from torch.utils.data import DataLoader

    shards = json.load(urlopen(f"{url}/manifest.json"))["shards"]
    urls = [f"{url}/{shard['path']}" for shard in shards if shard["split"] == "train"]
    rows = load_dataset("parquet", data_files=urls, split="train", streaming=True).cast_column(
        "image", Image(decode=False)
    )
    yield from DataLoader(rows, batch_size=P * K, num_workers=workers, collate_fn=len)


def run_once(system: str, url: str, options: dict, workers: int) -> dict:
    import torch.utils.data  # noqa: F401 imports are not part of what is measured

    if system == "datasets":
        import datasets  # noqa: F401
    else:
        import entire_id.loading.stream
        import entire_id.loading.web  # noqa: F401
    imports_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    batches = (plain_batches if system == "datasets" else our_batches)(url, options, workers)
    images = next(batches)
    first_s = time.perf_counter() - started
    images += sum(batches)
    took_s = time.perf_counter() - started
    who = resource.RUSAGE_CHILDREN if workers else resource.RUSAGE_SELF
    peak_mb = resource.getrusage(who).ru_maxrss / 1024
    return {"images": images, "first_s": first_s, "took_s": took_s, "peak_mb": peak_mb, "imports_mb": imports_mb}


def measured(system: str, url: str, options: dict, workers: int) -> dict:
    urlopen(url + COUNTS).read()
    command = [sys.executable, "-W", "ignore", __file__, url, "--run", json.dumps([system, options, workers])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout) | json.load(urlopen(url + COUNTS))


# --- all of them ---


def part_people(folder: Path) -> None:
    """Make somebody of every sequence of forty crops: so small a tree has too few people to mix."""
    numbers: dict[tuple[str, str], int] = {}
    parted = folder.with_name("parted")
    parted.mkdir()
    for path in sorted(folder.iterdir()):
        pid, place, shot = path.name.split("_")
        number = numbers.setdefault((pid, place.partition("s")[2]), len(numbers))
        path.rename(parted / f"{number:05d}_{place}_{shot}")
    folder.rmdir()
    parted.rename(folder)


def packed(work: Path, num_files: int) -> Path:
    folder, source = work / f"packed-{num_files}", work / f"crops-{num_files}"
    if not folder.exists():
        if not source.exists():
            make_tree(source, num_files)
            part_people(source / "bounding_box_train")
        command = [sys.executable, "-m", "entire_id", "pack", str(source), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def systems() -> list[tuple[str, dict]]:
    found = [*(("entire-id", options) for options in GRID), ("entire-id, decoded", DEFAULTS | {"decode": True})]
    if importlib.util.find_spec("aiohttp"):
        return [*found, ("datasets, no identity batches", {})]
    print("datasets reads nothing over HTTP without aiohttp: left out\n")
    return found


def show(runs: dict[tuple[str, int], list[dict]], image_bytes: int) -> None:
    head = [
        "system",
        *DEFAULTS,
        "workers",
        "images/s",
        "first batch, s",
        "requests",
        "bytes ÷ crops'",
        "labels ÷ crops'",
    ]
    print(f"| {' | '.join([*head, 'peak of a worker, MB'])} |\n|{'---|' * (len(head) + 1)}")
    for (key, workers), found in runs.items():
        system, options = json.loads(key)
        median = {name: statistics.median(run[name] for run in found) for name in found[0]}
        speed = statistics.median(run["images"] / run["took_s"] for run in found)
        cells = [system, *(options.get(name, "") for name in DEFAULTS), workers]
        cells += [f"{speed:,.0f}", f"{median['first_s']:.2f}", f"{median['requests']:.0f}"]
        cells += [f"{median[name] / image_bytes:.3f}" for name in ("bytes", "label_bytes")]
        print(f"| {' | '.join(map(str, [*cells, round(median['peak_mb'])]))} |")
    imports = [run["imports_mb"] for (key, _), found in runs.items() for run in found if "entire-id" in key]
    print(f"\nA process that has imported what it needs, and done nothing, has {statistics.median(imports):.0f} MB.")


def run_all(work: Path, num_files: int, rounds: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    folder = packed(work, num_files)
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    shards = [shard for shard in shards if shard["split"] == "train"]
    image_bytes = sum(shard["image_bytes"] for shard in shards)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch", version("torch"))
    print(
        f"{sum(shard['rows'] for shard in shards):,} crops, {image_bytes / 1e6:.0f} MB, {len(shards)} shards,", end=" "
    )
    print(f"{sum(len(shard['row_groups']) for shard in shards)} row groups; {rounds} rounds, medians;", end=" ")
    print(f"load average {os.getloadavg()[0]:.1f}\n", flush=True)
    runs: dict[tuple[str, int], list[dict]] = {}
    with serving(folder) as url:
        todo = [(name, how, workers) for name, how in systems() for workers in (0, 2)]
        for _ in range(rounds):
            for name, how, workers in todo:
                found = measured(name.split(",", maxsplit=1)[0], url, how, workers)
                runs.setdefault((json.dumps([name, how]), workers), []).append(found)
    show(runs, image_bytes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--run", type=json.loads)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.work))
    elif options.run:
        system, how, workers = options.run
        print(json.dumps(run_once(system, options.work, how, workers)))
    else:
        run_all(Path(options.work), options.files, options.rounds)


if __name__ == "__main__":
    main()
