"""Packing from and to URLs: the bytes of a pack on this machine, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from entire_id.errors import (
    CropRejectedError,
    MissingExtraError,
    OutputExistsError,
    SourceChangedError,
    SourceError,
    SourceUnreachableError,
    WriteFailedError,
)
from entire_id.shards.manifest import FileEntry
from entire_id.shards.pack import PackConfig, PackReport, pack
from entire_id.shards.store import LocalStore
from entire_id.sources.layouts import open_source, recognise

from builders import Wrapped, crop_names, image_bytes, pack_folder, rejected_rows, tree, write_crops
from servers import SERVERS, Server, serve

SHARD_ROWS = 12


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that runs."""
    with serve(request.param, tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """54 crops, cameras.csv, and a file that is no crop."""
    folder = write_crops(tmp_path_factory.mktemp("store") / "crops", crop_names(people=6))
    (folder / "cameras.csv").write_text("camid,continent\n0,asia\n1,asia\n21,europe\n")
    (folder / "query" / "Thumbs.db").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def source(server: Server, crops: Path) -> str:
    """The same at a URL, older than a clock of whole seconds is exact."""
    url = server.put(crops, "crops")
    time.sleep(2.2)
    return url


@pytest.fixture(scope="module")
def reference(crops: Path) -> tuple[dict[str, bytes], bytes]:
    """What a pack on this machine makes of it: files, and the list of rejected ones."""
    out = pack_folder(crops, crops.parent / "reference", shard_rows=SHARD_ROWS)
    files = {path: data for path, data in tree(out).items() if not (out / path).is_dir()}
    return files, (crops.parent / "reference.rejected.csv").read_bytes()


def config(**options: object) -> PackConfig:
    return PackConfig(**{"name": "entire-id", "shard_rows": SHARD_ROWS} | options)


def pack_url(source: str, out: str, **options: object) -> PackReport:
    return pack(open_source(source), out, config(**options))


def check_packed(server: Server, name: str, reference: tuple[dict[str, bytes], bytes]) -> None:
    """Everything is there, byte for byte, and nothing of the work."""
    assert server.tree(name) == reference[0]
    assert server.fs.cat_file(server.path(f"{name}.rejected.csv")) == reference[1]
    assert not server.exists(f"{name}.partial")


@pytest.mark.parametrize("jobs", [1, 2])
def test_from_url_to_url_the_bytes_are_those_of_a_pack_here(
    server: Server, source: str, reference: tuple, jobs: int
) -> None:
    report = pack_url(source, f"{server.url}/jobs{jobs}", jobs=jobs)
    check_packed(server, f"jobs{jobs}", reference)
    assert "secret" not in f"{report.folder}{report.rejected_csv}"
    assert str(report.rejected_csv).endswith(f"/jobs{jobs}.rejected.csv")


def test_a_layout_is_recognised_at_a_url(server: Server, source: str) -> None:
    found = recognise(source)
    assert found.layout.name == "entire-id"
    assert len(list(open_source(source, "auto").samples())) == 55


def test_the_command_takes_urls_and_names_no_password(server: Server, source: str, reference: tuple) -> None:
    command = ["pack", source, f"{server.url}/command", "--name", "entire-id", "--shard-size", str(SHARD_ROWS)]
    done = entire_id(*command)
    assert done.returncode == 0, done.stderr
    assert "next: copy it to a folder DIR here and type: entire-id verify DIR" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    check_packed(server, "command", reference)


def entire_id(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "entire_id", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


# --- stopped runs

SCRIPT = """
import sys
from builders import Slow
from entire_id.shards.pack import PackConfig, pack

if __name__ == "__main__":
    pack(Slow(sys.argv[1], 0.02), sys.argv[2], PackConfig(name="entire-id", shard_rows=int(sys.argv[3])))
"""


def kill_half_way(server: Server, source: str, name: str) -> None:
    """Pack in a process that is killed once two shards are done."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", SCRIPT, source, f"{server.url}/{name}", str(SHARD_ROWS)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(notes(server, name)) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said


def notes(server: Server, name: str) -> list[str]:
    return [path for path in server.names(f"{name}.partial") if path.endswith(".json")]


def test_a_killed_run_leaves_no_data_set_and_the_next_goes_on_with_it(
    server: Server, source: str, reference: tuple
) -> None:
    kill_half_way(server, source, "killed")
    assert "manifest.json" not in server.names("killed")
    assert not [path for path in server.names("killed") if path.endswith(".parquet") and path not in reference[0]]
    report = pack_url(source, f"{server.url}/killed")
    assert report.num_resumed >= 2
    check_packed(server, "killed", reference)


def test_a_crop_that_changed_since_is_packed_anew(server: Server, crops: Path, tmp_path: Path) -> None:
    url = server.put(crops, "changing")
    time.sleep(2.2)
    stopped(server, url, "changed")
    before = len(notes(server, "changed"))
    for name in crop_names(people=6)[:27]:
        server.write(f"changing/{name}", image_bytes(99))
    report = pack_url(url, f"{server.url}/changed")
    assert report.num_resumed < before
    local = write_crops(tmp_path / "crops", crop_names(people=6))
    for name in crop_names(people=6)[:27]:
        (local / name).write_bytes(image_bytes(99))
    for name in ("cameras.csv", "query/Thumbs.db"):
        (local / name).write_bytes((crops / name).read_bytes())
    out = pack_folder(local, tmp_path / "out", shard_rows=SHARD_ROWS)
    assert server.tree("changed") == {name: data for name, data in tree(out).items() if (out / name).is_file()}


class StoppedError(KeyboardInterrupt):
    pass


def stopped(server: Server, source: str, name: str, after: int = 30) -> None:
    """Pack until so many crops are written, then stop as Ctrl-C does."""

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing" and done >= after:
            raise StoppedError

    with pytest.raises(StoppedError):
        pack(open_source(source), f"{server.url}/{name}", config(), stop)


def test_work_that_was_stopped_may_go_on_at_once_on_another_machine(
    server: Server, source: str, reference: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(server, source, "stopped")
    monkeypatch.setattr("entire_id.shards.store.gettempdir", lambda: str(tmp_path))  # locks of another machine
    assert pack_url(source, f"{server.url}/stopped").num_resumed >= 2
    check_packed(server, "stopped", reference)


def test_an_error_that_no_next_run_mends_leaves_nothing(server: Server, source: str) -> None:
    with pytest.raises(CropRejectedError):
        pack_url(source, f"{server.url}/strict", strict=True)
    for name in ("strict", "strict.partial", "strict.rejected.csv"):
        assert not server.tree(name)
        assert not server.exists(name)


def test_a_crop_that_vanishes_is_named(server: Server, crops: Path) -> None:
    url = server.put(crops, "fading")
    source = open_source(url)

    def take_away(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing":
            for name in crop_names(people=6):
                if server.exists(f"fading/{name}"):
                    server.fs.rm_file(server.path(f"fading/{name}"))

    with pytest.raises(SourceChangedError, match="vanished"):
        pack(source, f"{server.url}/faded", config(), take_away)


# --- two runs at once


def mark(server: Server, name: str) -> dict[str, object]:
    return json.loads(server.fs.cat_file(server.path(f"{name}.partial/.unfinished")))


def set_mark(server: Server, name: str, **fields: object) -> None:
    changed = {"entire-id": "pack", "owner": "other", "lock": ["elsewhere", "/tmp/x.lock", 1, 2], "beat": time.time()}
    server.write(f"{name}.partial/.unfinished", json.dumps(changed | fields).encode())


def test_of_two_runs_at_once_the_second_is_refused(server: Server, source: str, reference: tuple) -> None:
    refused = []

    def again(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing" and not refused:
            with pytest.raises(OutputExistsError, match="another run is making it") as caught:
                pack_url(source, f"{server.url}/twice")
            refused.append(caught.value)

    pack(open_source(source), f"{server.url}/twice", config(), again)
    assert refused
    assert "secret" not in str(refused[0])
    check_packed(server, "twice", reference)


def test_a_run_on_another_machine_is_respected_until_it_is_silent(
    server: Server, source: str, reference: tuple
) -> None:
    set_mark(server, "elsewhere", beat=time.time() - 100)
    with pytest.raises(OutputExistsError, match="on elsewhere, was at work 10[0-9] s ago; .* 10 minutes"):
        pack_url(source, f"{server.url}/elsewhere")
    assert mark(server, "elsewhere")["owner"] == "other"
    set_mark(server, "elsewhere", beat=time.time() - 700)
    pack_url(source, f"{server.url}/elsewhere")
    check_packed(server, "elsewhere", reference)


def test_a_run_whose_work_another_took_over_stops_and_removes_nothing(server: Server, source: str) -> None:
    def take_over(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing":
            set_mark(server, "taken")

    with pytest.raises(OutputExistsError, match="another run is making it"):
        pack(open_source(source), f"{server.url}/taken", config(), take_over)
    assert mark(server, "taken")["owner"] == "other"
    assert any(path.endswith(".parquet") for path in server.names("taken"))


def test_a_run_says_that_it_is_alive(server: Server, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entire_id.shards.store._BEAT_S", 0.05)
    beats = set()

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing":
            first, limit = mark(server, "alive")["beat"], time.monotonic() + 60
            while (beat := mark(server, "alive")["beat"]) == first:
                assert time.monotonic() < limit
            beats.update([first, beat])

    pack(open_source(source), f"{server.url}/alive", config(shard_rows=100), watch)
    assert len(beats) >= 2


# --- what is refused


@pytest.mark.parametrize("name", ["manifest.json", "notes.txt"])
def test_a_folder_that_holds_something_is_refused_and_left_alone(server: Server, source: str, name: str) -> None:
    server.write(f"full-{name}/{name}", b"mine")
    with pytest.raises(OutputExistsError, match="it is not empty"):
        pack_url(source, f"{server.url}/full-{name}")
    assert server.tree(f"full-{name}") == {name: b"mine"}
    assert not server.exists(f"full-{name}.partial")


def test_a_data_set_is_refused_although_its_run_was_killed_at_the_very_end(server: Server, source: str) -> None:
    server.write("ended/manifest.json", b"{}")
    set_mark(server, "ended", beat=0)
    with pytest.raises(OutputExistsError, match="it is not empty"):
        pack_url(source, f"{server.url}/ended")
    assert server.tree("ended") == {"manifest.json": b"{}"}


def test_foreign_files_in_the_place_of_the_work_are_refused(server: Server, source: str) -> None:
    server.write("work.partial/mine.txt", b"mine")
    with pytest.raises(OutputExistsError, match="it is needed for the work"):
        pack_url(source, f"{server.url}/work")
    server.write("list.rejected.csv", b"mine")
    with pytest.raises(OutputExistsError, match="it is needed for the list of rejected files"):
        pack_url(source, f"{server.url}/list")
    server.write("file", b"mine")
    with pytest.raises(OutputExistsError, match="it is a file"):
        pack_url(source, f"{server.url}/file")
    with pytest.raises(OutputExistsError, match="it lies inside the folder of crops"):
        pack_url(source, f"{source}/out")
    assert server.tree("work.partial") == {"mine.txt": b"mine"}
    assert not server.exists("list")


def test_credentials_that_are_refused_are_named_on_one_line(server: Server, source: str, tmp_path: Path) -> None:
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    done = entire_id("pack", f"{server.refused}/crops", str(tmp_path / "out"), **nobody)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "/crops': cannot be read (" in done.stderr
    assert "wrong" not in done.stderr
    crops = write_crops(tmp_path / "crops", crop_names(people=1))
    done = entire_id("pack", str(crops), f"{server.refused}/out", **nobody)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "cannot be written: " in done.stderr
    assert "wrong" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_hostile_names_are_listed_and_never_followed(server: Server, crops: Path, tmp_path: Path) -> None:
    url = server.put(crops, "hostile")
    names = {"query/a\\b.jpg": b"x"}
    if server.kind == "s3":  # no folder has such names
        names |= {"query/../../up.jpg": b"x", "query//empty.jpg": b"x", "query/./dot.jpg": b"x"}
        names["query/"] = b""  # a folder, as consoles make it
    for name, data in names.items():
        if server.kind == "s3":
            server.fs.call_s3("put_object", Bucket="bucket", Key=f"hostile/{name}", Body=data)
        else:
            server.write(f"hostile/{name}", data)
    report = pack(open_source(url), tmp_path / "out", config())
    found = {row["path"]: row["reason"] for row in rejected_rows(tmp_path / "out")}
    assert found.pop("query/Thumbs.db") == "not-an-image"
    assert found.pop("query/a\\b.jpg") == "unsafe-path"
    if server.kind == "s3":
        assert found == dict.fromkeys(["query/..", "query/", "query/./"], "unsafe-path")
    else:
        assert found == {}
    assert report.manifest.num_rows == 54


# --- the version before


def test_shards_of_a_version_here_are_kept_at_the_url(server: Server, crops: Path, tmp_path: Path) -> None:
    old = pack_folder(crops, tmp_path / "old", shard_rows=SHARD_ROWS)
    new = pack_folder(crops, tmp_path / "new", shard_rows=SHARD_ROWS, version="1.1.0", previous=old)
    report = pack(open_source(crops), f"{server.url}/kept", config(version="1.1.0", previous=old))
    assert report.num_kept == len(report.manifest.shards)
    assert server.tree("kept") == {name: data for name, data in tree(new).items() if (new / name).is_file()}


# --- without a server


def test_a_url_of_this_machine_is_its_path(crops: Path, reference: tuple, tmp_path: Path) -> None:
    report = pack_url(f"file://{crops}", f"file://{tmp_path}/out")
    assert report.folder == tmp_path / "out"
    assert {name: data for name, data in tree(report.folder).items() if name in reference[0]} == reference[0]


def test_memory_serves_one_process_and_more_are_told(crops: Path, reference: tuple) -> None:
    import fsspec

    pack_url(str(crops), "memory://store/out")
    assert fsspec.filesystem("memory").cat_file("/store/out/manifest.json") == reference[0]["manifest.json"]
    with pytest.raises((WriteFailedError, OutputExistsError)):
        pack_url(str(crops), "memory://store/two", jobs=2)
    assert not fsspec.filesystem("memory").exists("/store/two/manifest.json")


def test_a_package_that_is_missing_is_named(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="gs:// needs it. Type: pip install gcsfs"):
        pack_url(str(crops), "gs://bucket/out")
    with pytest.raises(MissingExtraError, match="pip install gcsfs"):
        open_source("gs://bucket/crops")


@pytest.mark.parametrize("url", ["nobody://knows/this", "ftp://127.0.0.1:1/crops"])
def test_a_url_that_leads_nowhere_is_named(crops: Path, url: str) -> None:
    with pytest.raises(SourceUnreachableError, match="cannot be read"):
        open_source(url)
    with pytest.raises(WriteFailedError, match="cannot be written"):
        pack_url(str(crops), url)


def test_what_is_not_read_or_written_at_urls_is_refused(crops: Path) -> None:
    for url in ("s3://b/crops.csv", "s3://b/crops.parquet", "s3://b/crops.zip"):
        with pytest.raises(SourceError, match="copy it here first"):
            open_source(url)
    with pytest.raises(SourceError, match="copy it here first"):
        open_source(crops, cameras_path="s3://b/cameras.csv")
    with pytest.raises(OutputExistsError, match="a commit of its own"):
        pack_url(str(crops), "hf://datasets/me/mine")
    done = entire_id("pack", str(crops), "out", "--previous", "s3://bucket/old")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "'s3://bucket/old': it is read file by file; copy it to a folder here first" in done.stderr


def test_a_file_that_a_worker_wrote_where_nobody_sees_it_is_missed(tmp_path: Path) -> None:
    """A path that is not shared: each machine of a cluster has one of its own."""
    (tmp_path / "tree" / "old").mkdir(parents=True)
    (tmp_path / "tree" / "old" / "x.parquet").write_bytes(b"")
    store = LocalStore(tmp_path / "tree", tmp_path / "notes")
    with pytest.raises(WriteFailedError, match="do all workers see this folder"):
        store.tidy([FileEntry("data/query/asia-00000.parquet", 1, 5, "")])
    assert list((tmp_path / "tree").iterdir()) == []


def test_a_line_that_breaks_stops_the_run_and_rejects_nothing(server: Server, source: str) -> None:
    class Broken(Wrapped):
        def read(self, path: str) -> bytes:
            raise SourceUnreachableError(path, "timed out")

    with pytest.raises(SourceUnreachableError, match="Type|type the same command again"):
        pack(Broken(source), f"{server.url}/broken", config())
    assert mark(server, "broken")["beat"] == 0, "the work is kept"
