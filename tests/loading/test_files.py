"""Bytes from folders, web servers and the Hub: all of them or an error, whatever the other end does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import entire_id.loading.files as files_module
from entire_id.errors import DatasetNotFoundError, DownloadError, MissingExtraError, RepositoryNotFoundError
from entire_id.loading.cache import RangeCache
from entire_id.loading.files import FetchOptions, Files, LocalFiles, open_files
from entire_id.remote import RemoteFolder

from servers import Server, serve
from webserver import COMMIT, WebServer

DATA = bytes(range(256)) * 40
QUICK = FetchOptions(backoff_s=0.001, timeout_s=0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files."""
    (tmp_path / "set/data").mkdir(parents=True)
    (tmp_path / "set/data/é #1.bin").write_bytes(DATA)
    (tmp_path / "set/empty").write_bytes(b"")
    return tmp_path / "set"


NAME = "data/é #1.bin"


@pytest.fixture(params=["local", "web", "memory", "ftp"])
def files(request: pytest.FixtureRequest, folder: Path) -> Files:
    """The folder, wherever it lies."""
    if request.param == "local":
        return open_files(folder)
    if request.param == "web":
        return open_files(f"{request.getfixturevalue('web').url}/set/", QUICK)
    if request.param == "ftp":
        return open_files(request.getfixturevalue("ftp").put(folder, "set"), QUICK)
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in (NAME, "empty"):
        memory.pipe_file(f"/set/{path}", (folder / path).read_bytes())
    return open_files("memory://set", QUICK)


@pytest.fixture(scope="module")
def ftp(tmp_path_factory: pytest.TempPathFactory) -> Server:
    with serve("ftp", tmp_path_factory.mktemp("served")) as server:
        yield server


def test_every_place_gives_the_same_bytes(files: Files) -> None:
    assert files.size(NAME) == len(DATA)
    assert files.read(NAME) == DATA
    assert files.read(NAME, 5, 300) == DATA[5:300]
    assert files.read(NAME, len(DATA) - 1, len(DATA)) == DATA[-1:]
    assert files.read(NAME, 7) == DATA[7:]
    assert files.read(NAME, 5, 5) == b""
    assert files.read("empty") == b""
    assert files.size("empty") == 0
    with pytest.raises(FileNotFoundError):
        files.read("none", 0, 5)
    with pytest.raises(FileNotFoundError):
        files.size("none")
    for start in (len(DATA) - 5, len(DATA) + 5):
        with pytest.raises(EOFError, match="ends"):
            files.read(NAME, start, len(DATA) + 9)
    files.close()
    assert files.read(NAME, 0, 1) == DATA[:1]


def test_a_copy_is_small_and_reads_too(files: Files) -> None:
    files.read(NAME, 0, 1)
    files.content = "abc"
    sent = pickle.dumps(files)
    assert len(sent) < 700
    copy = pickle.loads(sent)
    assert copy.read(NAME, 3, 9) == DATA[3:9]
    assert (copy.content, copy.name, copy.is_local) == ("abc", files.name, files.is_local)


def test_threads_read_at_once(files: Files) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda start: files.read(NAME, start, start + 99), range(64))) == [
            DATA[start : start + 99] for start in range(64)
        ]


def test_threads_of_a_forked_child_share_one_connection(
    folder: Path, ftp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_files(ftp.put(folder, "set"), QUICK)
    files.read(NAME, 0, 5)
    opened: list[str] = []
    meeting = threading.Barrier(2)

    class SlowFolder(RemoteFolder):
        def __init__(self, url: str) -> None:
            opened.append(url)
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(0.3)  # for another that is opened at the same time
            super().__init__(url)

    def read_by_threads(results: Connection) -> None:
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: files.read(NAME, 5, 9), range(8)))
        results.send((found, len(opened)))

    monkeypatch.setattr(files_module, "RemoteFolder", SlowFolder)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=read_by_threads, args=(there,))
    with files_module._CONNECTING:  # as if a thread of the parent were about to connect
        child.start()
    assert here.poll(30)
    assert here.recv() == ({DATA[5:9]}, 1)
    child.join()


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_other_processes_read_by_themselves(files: Files, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files.read(NAME, 0, 1)
    if files.name.startswith("memory:"):
        pytest.skip("memory is of one process")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with multiprocessing.get_context(kind).Pool(1) as pool:
        assert pool.apply(files.read, (NAME, 3, 9)) == DATA[3:9]
    assert files.read(NAME, 9, 12) == DATA[9:12]


def test_files_that_nobody_uses_are_closed(folder: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        pickle.loads(pickle.dumps(LocalFiles(folder))).read(NAME, 0, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_more_files_than_may_be_open_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entire_id.loading.files._MAX_OPEN", 1)
    files = open_files(folder)
    (folder / "other").write_bytes(b"other")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        assert files.read(NAME, 0, 3) + files.read("other", 0, 5) == DATA[:3] + b"other"
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    files.close()


# --- what may go wrong on the way ---


@pytest.mark.parametrize("fault", ["reset", "stall", "cut", "short", "long", "elsewhere", "500", "503", "429", "408"])
def test_a_request_that_fails_is_repeated(folder: Path, web: WebServer, fault: str) -> None:
    web.faults.extend([fault, fault])
    assert open_files(f"{web.url}/set", QUICK).read(NAME, 100, 200) == DATA[100:200]
    assert web.asked("bin") == ["bytes=100-199"] * 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("reset", "RemoteProtocolError"),
        ("stall", "ReadTimeout"),
        ("cut", "RemoteProtocolError"),
        ("short", "99 bytes came, not 100"),
        ("long", "101 bytes or more came, not 100"),
        ("elsewhere", "bytes from 100 on"),
        ("503", "503 Service Unavailable"),
    ],
)
def test_what_fails_for_good_is_an_error_with_the_facts(folder: Path, web: WebServer, fault: str, reason: str) -> None:
    web.faults.extend([fault] * 9)
    options = FetchOptions(retries=2, backoff_s=0.001, timeout_s=0.1)
    with pytest.raises(DownloadError, match="bytes 100 to 200 cannot be fetched") as caught:
        open_files(f"{web.url}/set", options).read(NAME, 100, 200)
    error = caught.value
    assert reason in str(error)
    assert (error.url, error.span, error.attempts) == (f"{web.url}/set/{NAME}", (100, 200), 3)
    assert len(web.asked("bin")) == 3


@pytest.mark.parametrize("status", ["401", "403", "400"])
def test_a_refusal_is_not_repeated(folder: Path, web: WebServer, status: str) -> None:
    web.faults.append(status)
    with pytest.raises(DownloadError, match=rf"\({status} .*tried once"):
        open_files(f"{web.url}/set", QUICK).read(NAME, 0, 5)
    assert len(web.requests) == 1


def test_a_missing_file_is_not_asked_for_again(folder: Path, web: WebServer) -> None:
    with pytest.raises(FileNotFoundError, match="set/none"):
        open_files(f"{web.url}/set", QUICK).read("none", 0, 5)
    assert len(web.requests) == 1


def test_a_server_without_ranges_gives_the_slice(folder: Path, web: WebServer) -> None:
    web.faults.extend(["no-range"] * 3)
    files = open_files(f"{web.url}/set", QUICK)
    assert files.read(NAME, 100, 200) == DATA[100:200]
    assert files.read(NAME, 10_000) == DATA[10_000:]
    assert files.size(NAME) == len(DATA)
    web.faults.append("no-range")
    with pytest.raises(EOFError, match="ends before"):
        files.read(NAME, 100, len(DATA) + 1)
    assert len(web.requests) == 3


def test_a_server_asks_for_a_pause(folder: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("entire_id.loading.files._pause", lambda wait_s: waits.append(wait_s) or True)
    web.faults.extend(["503 7", "429 9999"])
    assert open_files(f"{web.url}/set", QUICK).read(NAME, 0, 1) == DATA[:1]
    assert waits == [7.0, 300.0]


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "12"}, 12),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"RateLimit": '"resolvers";r=0;t=55', "Retry-After": "1"}, 55),
        ({"RateLimit": '"resolvers";r=9;t=55'}, 0),
        ({}, 0),
    ],
)
def test_how_long_a_pause_is_asked_for(headers: dict[str, str], wait_s: float) -> None:
    from httpx2 import Headers

    from entire_id.loading.web import _asked_wait_s

    assert _asked_wait_s(Headers(headers)) == wait_s


def test_waits_double_and_vary(folder: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("entire_id.loading.files._pause", lambda wait_s: waits.append(wait_s) or True)
    web.faults.extend(["500"] * 9)
    with pytest.raises(DownloadError):
        open_files(f"{web.url}/set", FetchOptions(retries=8, backoff_s=1)).read(NAME, 0, 1)
    assert all(half <= wait <= 3 * half for wait, half in zip(waits, [0.5, 1, 2, 4, 8, 15, 15, 15], strict=True))
    assert len({wait / 2**place for place, wait in enumerate(waits)}) == 8


ENDING = """
import sys
from concurrent.futures import ThreadPoolExecutor

from entire_id.loading.files import FetchOptions, open_files

files = open_files(sys.argv[1], FetchOptions(backoff_s=60.0))
threads = ThreadPoolExecutor(4)
for start in range(8):
    threads.submit(files.read, "empty", start, start + 1)
sys.stdin.readline()
print("the end", flush=True)
"""


def test_a_program_that_ends_does_not_wait_for_a_request_that_is_repeated(folder: Path, web: WebServer) -> None:
    web.broken["/set/empty"] = "503"
    command, pipe = [sys.executable, "-c", ENDING, f"{web.url}/set"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, "HF_HUB_OFFLINE": "0"}) as it:
        deadline = time.monotonic() + 60
        while len(web.requests) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(web.requests) == 4, "all threads wait"
        it.stdin.write("\n")
        it.stdin.flush()
        assert it.stdout.readline() == "the end\n"
        try:
            assert it.wait(10) == 0, "each of them waits 15 s at least"
        finally:
            it.kill()


def test_signed_addresses_are_remembered_and_forgotten_when_they_expire(folder: Path, web: WebServer) -> None:
    web.redirects = True
    files = open_files(f"{web.url}/set", QUICK)
    for start in range(3):
        assert files.read(NAME, start, start + 9) == DATA[start : start + 9]
    assert len(web.requests) == 4, "only the first is redirected"
    web.token = "2"
    assert files.read(NAME, 50, 60) == DATA[50:60]
    assert len(web.requests) == 7, "the old address, the server, the new one"
    assert files.read(NAME, 60, 70) == DATA[60:70]
    assert len(web.requests) == 8


def test_signed_addresses_serve_several_threads_at_once(folder: Path, web: WebServer) -> None:
    web.redirects = True
    files = open_files(f"{web.url}/set", QUICK)
    files.read(NAME, 0, 9)
    starts = range(64)
    for token, at_most in (("1", len(starts)), ("2", len(starts) + 32)):
        web.token = token
        web.requests.clear()
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda start: files.read(NAME, start, start + 9), starts)) == [
                DATA[start : start + 9] for start in starts
            ]
        assert len(starts) <= len(web.requests) <= at_most
    web.requests.clear()
    files.read(NAME, 0, 9)
    assert len(web.requests) == 1


def test_nobody_listens(tmp_path: Path, web: WebServer) -> None:
    options = FetchOptions(retries=1, backoff_s=0.001)
    with pytest.raises(DownloadError, match=r"ConnectError.*tried 2 times"):
        open_files("http://127.0.0.1:1/set", options).read("a", 0, 5)


def test_offline_mode_says_so(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        open_files(f"{web.url}/set", QUICK).read("a", 0, 5)


def test_a_client_that_another_thread_closed_is_replaced(
    folder: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import close_session
    from huggingface_hub.utils import get_session

    def taken_just_before_it_was_closed() -> object:
        client = get_session()
        if not web.requests and not closed:
            closed.append(client)
            close_session()
        return client

    closed: list[object] = []
    monkeypatch.setattr("entire_id.loading.web.get_session", taken_just_before_it_was_closed)
    assert open_files(f"{web.url}/set", QUICK).read(NAME, 5, 9) == DATA[5:9]
    assert closed


# --- which place is meant ---


def test_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for where in ("set", folder, f"file://{folder}"):
        assert open_files(where).is_local
    (folder / "data").mkdir(exist_ok=True)
    assert open_files("set/data").is_local, "a folder wins over a repository"
    with pytest.raises(DatasetNotFoundError, match="no such folder"):
        open_files(Path("owner/name"))
    with pytest.raises(DatasetNotFoundError, match="no such folder, and no repository name"):
        open_files("none")
    with pytest.raises(DatasetNotFoundError, match="no such folder, and no repository name"):
        open_files("/a/b/c")
    with pytest.raises(DatasetNotFoundError, match=r"nobody knows nope:// URLs; known are https://, .*s3://") as told:
        open_files("nope://bucket/set")
    assert "entire-id pack" not in str(told.value)
    with pytest.raises(DatasetNotFoundError, match="whether the other end answers"):
        open_files("ftp://127.0.0.1:1/set")
    with pytest.raises(MissingExtraError, match="paramiko"):
        open_files("sftp://host/set")


def test_revision_belongs_to_a_repository(folder: Path) -> None:
    for where in (folder, "http://127.0.0.1:1/set"):
        with pytest.raises(ValueError, match="'v1' belongs to a repository"):
            open_files(where, FetchOptions(revision="v1"))
    with pytest.raises(ValueError, match="names revision 'v2', and 'v1' was asked for"):
        open_files("hf://datasets/owner/name@v2", FetchOptions(revision="v1"))


@pytest.mark.parametrize("where", ["owner/entire-id", "owner/entire-id@v1.0.0", "hf://datasets/owner/entire-id@v1.0.0"])
def test_repository(hub: WebServer, packed: Path, where: str) -> None:
    files = open_files(where, QUICK)
    assert files.name == f"hf://datasets/owner/entire-id@{COMMIT}"
    expected = (packed / "cameras.csv").read_bytes()
    hub.requests.clear()
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read("cameras.csv", 2, 9) == expected[2:9]
    assert hub.requests == [(f"/datasets/owner/entire-id/resolve/{COMMIT}/cameras.csv", "bytes=2-8")]
    with pytest.raises(FileNotFoundError):
        copy.read("none", 0, 3)


def test_repository_redirects_without_giving_the_token_away(
    hub: WebServer, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    files = open_files("owner/entire-id", QUICK)
    hub.redirects = True
    hub.authorized.clear()
    for start in range(3):
        assert files.read("cameras.csv", start, 9) == (packed / "cameras.csv").read_bytes()[start:9]
    assert hub.authorized == [f"/datasets/owner/entire-id/resolve/{COMMIT}/cameras.csv"]


def test_addresses_of_the_same_host_are_asked_with_the_token(
    hub: WebServer, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    files = open_files("owner/entire-id", QUICK)
    hub.redirects, hub.redirect_host = True, "127.0.0.1"
    hub.authorized.clear()
    for start in range(3):
        files.read("cameras.csv", start, 9)
    assert hub.authorized == 3 * [f"/datasets/owner/entire-id/resolve/{COMMIT}/cameras.csv", "/cameras.csv"]


def test_repository_that_refuses(hub: WebServer, packed: Path) -> None:
    files = open_files("owner/entire-id", QUICK)
    with pytest.raises(RepositoryNotFoundError, match="the Hub says no"):
        open_files("owner/other", QUICK)
    with pytest.raises(RepositoryNotFoundError, match="the Hub says no"):
        open_files("owner/entire-id", FetchOptions(revision="v9"))
    hub.gated = True
    hub.requests.clear()
    shutil.rmtree(packed.parent / "hub-cache")  # the Hub's client would give the manifest from there
    for attempt in (lambda: open_files("owner/entire-id", QUICK), lambda: files.read("cameras.csv", 0, 5)):
        with pytest.raises(RepositoryNotFoundError, match="access is gated"):
            attempt()
    assert len(hub.asked("cameras.csv")) == 1


# --- the cache ---


def cached(web: WebServer, folder: Path, num_bytes: int = 10**6) -> Files:
    files = open_files(f"{web.url}/set", FetchOptions(cache_dir=folder, cache_bytes=num_bytes, backoff_s=0.001))
    files.content = "a digest"
    return files


def stored(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.is_file()]


def test_what_was_fetched_is_not_fetched_again(folder: Path, web: WebServer, tmp_path: Path) -> None:
    for _ in range(3):
        files = cached(web, tmp_path / "cache")
        assert files.read(NAME, 5, 50) == DATA[5:50]
        assert files.read(NAME, 50, 60) == DATA[50:60]
    assert len(web.requests) == 2


def test_nothing_is_kept_before_it_is_known_what_it_belongs_to(folder: Path, web: WebServer, tmp_path: Path) -> None:
    files = cached(web, tmp_path / "cache")
    files.read(NAME, 5, 50)
    files.content = ""
    files.read(NAME, 5, 50)
    files.content = "another digest"
    files.read(NAME, 5, 50)
    assert len(web.requests) == 3
    assert len(stored(tmp_path / "cache")) == 2


@pytest.mark.parametrize("damage", [b"", b"x", bytes(53), None])
def test_damaged_entries_are_never_served(folder: Path, web: WebServer, tmp_path: Path, damage: bytes | None) -> None:
    files = cached(web, tmp_path / "cache")
    files.read(NAME, 5, 50)
    (entry,) = stored(tmp_path / "cache")
    entry.write_bytes(entry.read_bytes()[:-1] + b"x" if damage is None else damage)
    assert files.read(NAME, 5, 50) == DATA[5:50]
    assert files.read(NAME, 5, 50) == DATA[5:50]
    assert len(web.requests) == 2


def test_forgotten_entries_are_fetched_again(folder: Path, web: WebServer, tmp_path: Path) -> None:
    files = cached(web, tmp_path / "cache")
    for _ in range(2):
        files.read(NAME, 5, 50)
        files.forget(NAME, 5, 50)
        files.forget(NAME, 5, 51)
    assert len(web.requests) == 2


def test_cache_never_holds_more_than_its_size(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 1000)
    for number in range(40):
        cache.put(str(number), bytes(90 + number))
        assert sum(path.stat().st_size for path in stored(tmp_path)) <= 1000
        assert cache.get(str(number)) == bytes(90 + number)
    cache.put("large", bytes(1000))
    assert cache.get("large") is None
    assert cache.get("39") is not None


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 1000)
    for number in range(9):
        cache.put(str(number), bytes(92))
    for age, path in enumerate(sorted(stored(tmp_path), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, ns=(age, age))
    assert cache.get("0") is not None
    cache.put("9", bytes(92))
    cache.put("10", bytes(92))
    assert [number for number in range(11) if cache.get(str(number)) is not None] == [0, 3, 4, 5, 6, 7, 8, 9, 10]


def fill(folder: Path, first: int) -> None:
    cache = RangeCache(folder, 20_000)
    for number in range(first, first + 100):
        cache.put(str(number), bytes(500))


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.starmap(fill, [(tmp_path, 0), (tmp_path, 50), (tmp_path, 200)])
    assert 10_000 < sum(path.stat().st_size for path in stored(tmp_path)) <= 20_000
    assert all(len(path.name) == 62 for path in stored(tmp_path)), "no temporary file is left"


def test_full_disk_keeps_nothing_and_says_nothing(small_disk: Path) -> None:
    cache = RangeCache(small_disk / "cache", 10**9)
    for number in range(40):
        cache.put(str(number), bytes(100_000))
    kept = [number for number in range(40) if cache.get(str(number)) is not None]
    assert 5 < len(kept) < 40
    assert all(len(path.name) == 62 for path in stored(small_disk / "cache"))
