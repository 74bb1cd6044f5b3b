"""Folders at URLs: what listings say, and how an object store and a file system differ."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from entire_id.errors import SourceChangedError, SourceError
from entire_id.records import Reason, Rejected
from entire_id.remote import RemoteFolder, _nanoseconds, place_of, shown
from entire_id.sources.files import MAX_FILE_BYTES
from entire_id.sources.remote import RemoteFiles

from servers import SERVERS, Server, serve


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a small folder."""
    with serve(request.param, tmp_path_factory.mktemp("served")) as running:
        for name, data in {
            "a.jpg": b"one",
            "query/b.jpg": b"two",
            "query/deep/c.jpg": b"",
            "query/é ü.jpg": b"x",
        }.items():
            running.write(f"folder/{name}", data)
        yield running


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("file:///shared/crops", Path("/shared/crops")),
        ("local:///shared", Path("/shared")),
        ("crops", Path("crops")),
        (Path("crops"), Path("crops")),
        ("s3://bucket//crops/", "s3://bucket//crops"),
        ("memory://x", "memory://x"),
    ],
)
def test_a_url_is_text_and_keeps_its_slashes(url: str | Path, place: Path | str) -> None:
    assert place_of(url) == place


def test_a_password_is_not_shown() -> None:
    assert shown("ftp://me:secret@host/a@b") == "ftp://host/a@b"
    assert shown("s3://bucket/a@b") == "s3://bucket/a@b"
    assert RemoteFolder("ftp://me:secret@host/x").name == "ftp://host/x"


@pytest.mark.parametrize(
    "when", ["20260102030405", "20260102030405.250", "2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)]
)
def test_times_of_all_kinds_are_nanoseconds(when: object) -> None:
    assert _nanoseconds(when) == 1767323045 * 10**9


def test_what_is_no_time_is_none() -> None:
    assert [_nanoseconds(when) for when in (None, "yesterday", True, b"")] == [None] * 4
    assert _nanoseconds(1.5) == 1_500_000_000


def test_every_file_is_found_once_and_read(server: Server) -> None:
    files = RemoteFiles(f"{server.url}/folder/")
    assert sorted(files.walk()) == ["a.jpg", "query/b.jpg", "query/deep/c.jpg", "query/é ü.jpg"]
    assert [files.read(path).data for path in ("a.jpg", "query/b.jpg", "query/deep/c.jpg")] == [b"one", b"two", b""]
    assert files.folders("") == ["query"]
    assert files.folders("query") == ["deep"]
    assert files.folders("missing") == []
    assert files.check("a.jpg") == "a.jpg"
    assert files.check("query") == Rejected("query", Reason.NOT_AN_IMAGE, "no ordinary file")
    assert files.check("none.jpg") == Rejected("none.jpg", Reason.MISSING)
    assert files.check("../x.jpg") == Rejected("../x.jpg", Reason.UNSAFE_PATH)


def test_a_copy_in_another_process_reads_and_stamps_too(server: Server) -> None:
    files = RemoteFiles(f"{server.url}/folder")
    list(files.walk())
    copy = pickle.loads(pickle.dumps(files))
    assert len(pickle.dumps(files)) < 500, "the listing stays here"
    assert copy.read("a.jpg").data == b"one"
    assert copy.stamp("a.jpg") == files.stamp("a.jpg")


def test_a_stamp_is_that_of_the_listing_and_tells_a_change(server: Server) -> None:
    server.write("stamped/a.jpg", b"one")
    files = RemoteFiles(f"{server.url}/stamped")
    list(files.walk())
    before = files.stamp("a.jpg")
    server.write("stamped/a.jpg", b"other")
    assert files.stamp("a.jpg") == before, "nothing is asked again"
    list(files.walk())
    assert files.stamp("a.jpg") != before
    assert files.stamp("a.jpg")[0] <= time.time_ns() + 2 * 10**9
    with pytest.raises(FileNotFoundError):
        files.stamp("none.jpg")


def test_what_is_gone_has_vanished(server: Server) -> None:
    with pytest.raises(SourceChangedError, match="vanished"):
        RemoteFiles(f"{server.url}/folder").read("none.jpg")


def test_a_place_with_nothing_there_is_no_source(server: Server) -> None:
    with pytest.raises(SourceError, match="/nothing': no such folder"):
        list(RemoteFiles(f"{server.url}/nothing").walk())
    with pytest.raises(SourceError, match="neither a folder nor a bucket"):
        RemoteFiles(f"{server.url}/folder/a.jpg")


def test_a_file_larger_than_any_crop_is_not_fetched_whole() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/large/most.jpg", b"x" * MAX_FILE_BYTES)
    memory.pipe_file("/large/more.jpg", b"x" * (MAX_FILE_BYTES + 5))
    files = RemoteFiles("memory://large")
    assert len(files.read("most.jpg").data) == MAX_FILE_BYTES
    with pytest.raises(OSError, match=f"{MAX_FILE_BYTES + 5:,} bytes, more than"):
        files.read("more.jpg")
    memory.rm("/large", recursive=True)


def test_a_file_is_created_once(server: Server) -> None:
    folder = RemoteFolder(f"{server.url}/created")
    folder.create("mark", b"first")
    with pytest.raises(FileExistsError):
        folder.create("mark", b"second")
    assert folder.read("mark", 100) == b"first"
    folder.write("mark", b"third")
    assert folder.read("mark", 3) == b"thi"
    folder.remove("mark")
    folder.remove("mark")
    folder.remove_folders()
    assert not server.tree("created")


def test_nothing_half_written_has_a_final_name(server: Server, tmp_path: Path) -> None:
    """Nor is anything else left when it is complete."""
    (tmp_path / "file").write_bytes(b"x" * 300_000)
    folder = RemoteFolder(f"{server.url}/put")
    folder.put(tmp_path / "file", "a/b/file")
    folder.put(tmp_path / "file", "a/b/file")
    assert server.tree("put") == {"a/b/file": b"x" * 300_000}
    with pytest.raises(FileNotFoundError, match="none"):
        folder.put(tmp_path / "none", "a/b/none")
    assert list(server.tree("put")) == ["a/b/file"]
