"""Batches over a real web server that fails: those of the local folder, or an error that says what is wrong."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from entire_id.errors import CorruptCropError, EntireIdError, ManifestError
from entire_id.loading.dataset import CropDataset, ReadOptions
from entire_id.loading.files import FetchOptions
from entire_id.loading.lanes import EpochDraw, draw_units
from entire_id.loading.sampler import PKSampler
from entire_id.loading.stream import PKStream, StreamOptions
from entire_id.shards.manifest import Shard, read_manifest

from builders import many_crops, pack_folder
from webserver import WebServer, web_server

P, K = 4, 4
FAST: dict[str, Any] = {"retries": 20, "timeout_s": 1.0, "backoff_s": 0.001}
Batches = list[tuple[list[int], list[bytes]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """384 gallery crops of 24 people in 12 shards or more of one row group each."""
    home = tmp_path_factory.mktemp("http")
    return pack_folder(many_crops(home / "source", people=24, shots=16), home / "packed", shard_rows=32)


@pytest.fixture
def server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A web server of a copy of `folder`."""
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    shutil.copytree(folder, tmp_path / "packed")
    with web_server(tmp_path / "packed") as server:
        yield server
        server.released.set()
        close_session()


def gallery(folder: Path) -> list[Shard]:
    return [shard for shard in read_manifest(folder).shards if shard.split == "gallery"]


def stream_of(where: Path | str, reading: ReadOptions | None = None, seed: int = 0, **mixing: Any) -> PKStream:
    options = StreamOptions(**{"pool_rows": 100, "unit_groups": 1, "lanes": 2, "prefetch_units": 2} | mixing)
    return PKStream(where, "gallery", P, K, seed=seed, decode=False, reading=reading, options=options)


def stream_batches(where: Path | str, workers: int = 0, fetch: FetchOptions | None = None) -> Batches:
    loader = DataLoader(stream_of(where, reading(fetch)), batch_size=None, num_workers=workers)
    return [(batch["row"].tolist(), batch["image"]) for batch in loader]


def map_batches(where: Path | str, workers: int = 0, fetch: FetchOptions | None = None) -> Batches:
    crops = CropDataset(where, "gallery", decode=False, reading=reading(fetch))
    loader = DataLoader(crops, batch_sampler=PKSampler(crops.pids, P, K), num_workers=workers)
    return [(batch["row"].tolist(), batch["image"]) for batch in loader]


def reading(fetch: FetchOptions | None) -> ReadOptions:
    return ReadOptions(fetch=fetch or FetchOptions(**FAST))


READERS = pytest.mark.parametrize("batches", [stream_batches, map_batches])
Reader = Callable[..., Batches]


@READERS
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder_whatever_goes_wrong(
    folder: Path, server: WebServer, batches: Reader, workers: int
) -> None:
    rng = random.Random(workers)
    faults = ["cut", "reset", "503", "short", "long", "elsewhere", "no-range", *[""] * 24]
    server.faults = deque(["stall", *(rng.choice(faults) for _ in range(200)), "stall"])
    assert batches(server.url, workers) == batches(folder)
    assert len(server.faults) < 190, "the faults were met"


@READERS
def test_a_shard_that_was_replaced_is_refused(server: WebServer, batches: Reader) -> None:
    shards = gallery(server.folder)
    target = server.folder / shards[3].path
    target.write_bytes((server.folder / shards[4].path).read_bytes())
    with pytest.raises(ManifestError, match=shards[3].path):
        batches(server.url)


@READERS
def test_a_shard_rewritten_to_the_same_size_is_refused(server: WebServer, batches: Reader) -> None:
    shard = gallery(server.folder)[0]
    target = server.folder / shard.path
    data = target.read_bytes()
    target.write_bytes(data[64:] + data[:64])
    with pytest.raises(ManifestError, match=f"{shard.path}.*the shard was rewritten"):
        batches(server.url)


def test_a_byte_damaged_on_its_way_is_fetched_again(folder: Path, server: WebServer) -> None:
    stream = stream_of(server.url, reading(None))
    crops = CropDataset(server.url, "gallery", decode=False, reading=reading(None))
    assert len(list(stream)) > 20  # from now on it has its labels, and asks for crops alone
    for read, expected in (
        (lambda: [batch["image"] for batch in stream], [images for _, images in stream_batches(folder)]),
        (
            lambda: [crops[row]["image"] for row in range(1, 9)],
            [CropDataset(folder, "gallery", decode=False)[row]["image"] for row in range(1, 9)],
        ),
    ):
        server.requests.clear()
        server.faults = deque(["damage", "", "", ""])
        stream.set_epoch(0)
        assert read() == expected
        assert [times for times in Counter(server.requests).values() if times > 1] == [2]


@READERS
def test_a_byte_damaged_on_the_server_is_named(server: WebServer, batches: Reader) -> None:
    index = CropDataset(server.folder, "gallery").index
    row = int(index.shard_numbers.searchsorted(5)) + 7
    shard, offset = index.shards[5].path, int(index.offsets[row])
    data = bytearray((server.folder / shard).read_bytes())
    data[offset + 9] ^= 0xFF
    (server.folder / shard).write_bytes(data)
    with pytest.raises(CorruptCropError) as caught:
        batches(server.url)
    assert f"row 7, at byte {offset:,}" in str(caught.value), "of the shard"
    assert f"{server.url}/{shard}" in str(caught.value)
    assert index.key(row) in str(caught.value)


@READERS
def test_the_cache_serves_later_epochs_and_never_grows_over_its_size(
    folder: Path, server: WebServer, tmp_path: Path, batches: Reader
) -> None:
    expected = batches(folder)
    whole = FetchOptions(**FAST, cache_dir=tmp_path / "cache")
    assert batches(server.url, 0, whole) == expected
    server.requests.clear()
    assert batches(server.url, 0, whole) == expected
    assert {path for path, span in server.requests if span != "bytes=0-0"} == {"/manifest.json"}
    for cache_bytes in (0, 20_000, 300_000):
        small = FetchOptions(**FAST, cache_dir=tmp_path / f"cache-{cache_bytes}", cache_bytes=cache_bytes)
        assert batches(server.url, 2, small) == expected
        assert entry_bytes(tmp_path / f"cache-{cache_bytes}") <= cache_bytes


def entry_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("*/*"))


def test_the_cache_stays_small_at_any_time(server: WebServer, tmp_path: Path) -> None:
    fetch = FetchOptions(**FAST, cache_dir=tmp_path / "cache", cache_bytes=150_000)
    sizes = [entry_bytes(tmp_path / "cache") for _ in stream_of(server.url, reading(fetch))]
    assert 0 < max(sizes) <= 150_000


def test_another_epoch_asks_for_no_labels(folder: Path, server: WebServer) -> None:
    stream = stream_of(server.url, reading(None))
    first = [batch["row"].tolist() for batch in stream]
    server.requests.clear()
    stream.set_epoch(1)
    second = [batch["row"].tolist() for batch in stream]
    assert sorted(chain(*second)) == sorted(chain(*first))
    assert second != first
    shards = [shard.path for shard in gallery(folder)]
    assert sorted(path.lstrip("/") for path, _ in server.requests) == sorted(shards), "one request a row group"


def test_workers_that_live_on_ask_for_labels_once(folder: Path, server: WebServer) -> None:
    stream = stream_of(server.url, reading(None))
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    num_batches = [len(list(loader)) for _ in range(2)]
    assert min(num_batches) > 20
    asked = Counter(path for path, _ in server.requests if path.startswith("/meta/"))
    assert asked == {f"/{shard.meta_path}": 2 for shard in gallery(folder)}, "once by each worker"


def test_the_first_batch_needs_its_own_labels_only(folder: Path, server: WebServer) -> None:
    num_shards = len(gallery(folder))
    batches = iter(stream_of(server.url, reading(None), lanes=1, pool_rows=80, prefetch_units=1))
    next(batches)
    asked = {path for path, _ in server.requests if path.startswith("/meta/")}
    batches.close()
    assert num_shards >= 10
    assert len(asked) <= 4, "a pool of 80 rows takes at most three units, and one is fetched ahead"


def test_what_is_skipped_is_not_read(folder: Path, server: WebServer) -> None:
    mixing = {"lanes": 1, "pool_rows": 60}
    whole = [batch["row"].tolist() for batch in stream_of(folder, **mixing)]
    stream = stream_of(server.url, reading(None), **mixing)
    stream.load_state_dict(stream_of(folder, **mixing).state_dict(30))
    rest = [(batch["row"].tolist(), batch["image"]) for batch in stream]
    assert [rows for rows, _ in rest] == whole[30:]
    assert [images for _, images in rest] == [batch["image"] for batch in stream_of(folder, **mixing)][30:]
    needed = set(CropDataset(folder, "gallery").index.shard_numbers[list(chain(*whole[30:]))].tolist())
    shards = [shard.path for shard in gallery(folder)]
    asked = {shards.index(path.lstrip("/")) for path, _ in server.requests if path.startswith("/data/")}
    assert asked == needed
    assert len(needed) < len(shards) / 2


def failure_of(loader: DataLoader[Any]) -> str:
    """What a loop over a loader ends with; workers are gone when this returns."""
    try:
        num_batches = len(list(loader))
    except (EntireIdError, RuntimeError) as error:  # which one a worker raised, its traceback says
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{num_batches} batches and no error")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_surfaces_once_and_clearly(folder: Path, server: WebServer, workers: int) -> None:
    shard = gallery(folder)[7]
    fetch = FetchOptions(retries=2, timeout_s=5.0, backoff_s=0.001)
    for path in (shard.meta_path, shard.path):
        server.broken = {f"/{path}": "503"}
        server.requests.clear()
        stream = stream_of(server.url, reading(fetch))
        said = failure_of(DataLoader(stream, batch_size=None, num_workers=workers))
        assert "DownloadError" in said
        assert f"{server.url}/{path}" in said
        assert "503" in said
        if workers == 0:
            assert len(server.asked(path)) == 3, "all who need it wait for one, which tries three times"
            server.broken = {}
            assert len(list(stream)) == len(list(stream_of(folder))), "what was missing is asked for anew"


def test_an_abandoned_iterator_waits_for_nothing(folder: Path, server: WebServer) -> None:
    shards = gallery(folder)
    units = draw_units([shard.row_groups for shard in shards], EpochDraw(P, K, 60, 1, 0, 0))
    server.broken = {f"/{shards[unit.shard].path}": "stall" for unit in units[3:]}
    batches = iter(stream_of(server.url, reading(FetchOptions(timeout_s=60.0)), lanes=1, pool_rows=60))
    assert len(next(batches)["row"]) == P * K
    assert server.stalled.wait(30), "more units are under way"
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 20, "each of them takes 30 s"
