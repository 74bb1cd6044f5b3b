"""Tombstones: they keep what was erased out of later packs, and name nobody without the secret."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest

from entire_id.errors import ErasureError, TombstonesError, WriteFailedError
from entire_id.records import Reason, Sample
from entire_id.shards.erase import EraseRequest, erase
from entire_id.shards.manifest import read_manifest
from entire_id.shards.pack import PackConfig
from entire_id.shards.tombstones import add_tombstones, image_entry, make_secret, read_secret, read_tombstones

from builders import crop_names, go_on, image_bytes, pack_folder, packed_images, rejected_rows, settle, stop_pack, tree

SECRET = bytes(range(32))


@pytest.fixture
def notes(tmp_path: Path) -> dict[str, Path]:
    return {"tombstones": tmp_path / "t.jsonl", "secret": tmp_path / "secret"}


@pytest.fixture
def erased(packed: Path, notes: dict[str, Path], tmp_path: Path) -> Path:
    """`packed` without test/2, whose tombstones are in `notes`."""
    report = erase(packed, tmp_path / "new", EraseRequest(people=("test/2",), new_secret=True, **notes))
    assert report.num_tombstones == 1 + 9 + 9
    return tmp_path / "new"


def test_the_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    secret = make_secret(path)
    assert len(secret) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert make_secret(path) == read_secret(path) == secret, "one that is there is kept"
    assert make_secret(tmp_path / "other") != secret
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "secret"]


def test_a_secret_that_cannot_be_used_is_refused_with_what_to_do(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(TombstonesError, match="--new-secret"):
        read_secret(path)
    make_secret(path)
    path.chmod(0o640)
    with pytest.raises(TombstonesError, match=r"others may read the secret \(mode 640\).*chmod 600"):
        read_secret(path)
    path.chmod(0o400)
    read_secret(path)
    path.chmod(0o600)
    path.write_text("changeme\n")
    with pytest.raises(TombstonesError, match="64 hexadecimal digits"):
        read_secret(path)
    with pytest.raises(TombstonesError, match="must not lie in a data set"):
        make_secret(packed / "secret")
    (packed / "meta" / "secret").write_text(path.read_text())
    with pytest.raises(TombstonesError, match="must not lie in a data set"):
        read_secret(packed / "meta" / "secret")
    with pytest.raises(WriteFailedError):
        make_secret(tmp_path / "no" / "secret")


def test_an_entry_is_what_the_page_says(tmp_path: Path) -> None:
    path, image = tmp_path / "t", image_bytes()
    entries = [("person", b"test/17"), ("key", b"query/a"), image_entry(hashlib.sha256(image).digest())]
    assert add_tombstones(path, SECRET, entries) == 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    expected = {
        "person": b"person\0test/17",
        "key": b"key\0query/a",
        "image": b"image\0" + hashlib.sha256(image).digest(),
        "secret": b"secret\0",
    }
    assert lines[0]["kind"] == "secret"
    assert {line["kind"]: line["hmac"] for line in lines} == {
        kind: hmac.new(SECRET, text, "sha256").hexdigest() for kind, text in expected.items()
    }


def test_what_is_there_is_not_added_again_and_the_order_tells_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    entries = [("key", f"query/{number}".encode()) for number in range(20)]
    assert add_tombstones(one, SECRET, entries[:15]) == 15
    assert add_tombstones(one, SECRET, entries[5:]) == 5
    assert add_tombstones(one, SECRET, entries) == 0
    assert add_tombstones(other, SECRET, reversed(entries)) == 20
    assert one.read_bytes() == other.read_bytes()


def test_the_file_and_what_is_printed_name_nobody(erased: Path, notes: dict[str, Path]) -> None:
    text = notes["tombstones"].read_text()
    assert "00002" not in text
    assert "test/2" not in text
    secret = read_secret(notes["secret"])
    tombstones = read_tombstones(notes["tombstones"], secret)
    assert secret.hex() not in text
    assert repr(secret)[2:20] not in repr(tombstones)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "another secret"),
        ("path,pid\n", "line 1 is no tombstone"),
        ('{"kind": "secret"}\n', "line 1 is no tombstone"),
        ('{"kind": "name", "hmac": "' + "0" * 64 + '"}\n', "line 1 is no tombstone"),
        ('{"kind": "key", "hmac": 3}\n', "line 1 is no tombstone"),
        ("[]\n", "line 1 is no tombstone"),
        ('{"kind": "key", "hmac": "' + "0" * 64 + '"}\n', "another secret"),
        ("\xff\xfe", "line 1 is no tombstone"),
    ],
)
def test_a_file_that_is_no_list_is_refused_and_never_written_to(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "t"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(TombstonesError, match=what):
        read_tombstones(path, SECRET)
    if text:
        with pytest.raises(TombstonesError, match=what):
            add_tombstones(path, SECRET, [("key", b"query/a")])
        assert path.read_text(encoding="latin-1") == text
    assert sorted(one.name for one in tmp_path.iterdir()) == ["t"]


def test_another_secret_is_found_out_before_anything_is_done(
    erased: Path, packed: Path, crops: Path, notes: dict[str, Path], tmp_path: Path
) -> None:
    other = {**notes, "secret": tmp_path / "other"}
    make_secret(other["secret"])
    for do in (
        lambda: erase(packed, tmp_path / "newer", EraseRequest(people=("3",), **other)),
        lambda: pack_folder(crops, tmp_path / "newer", **other),
    ):
        with pytest.raises(TombstonesError, match="another secret made these tombstones"):
            do()
        assert not (tmp_path / "newer").exists()
    with pytest.raises(ValueError, match="go together"):
        PackConfig(tombstones=notes["tombstones"])


def test_a_failed_erasure_leaves_no_tombstone(packed: Path, notes: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ErasureError):
        erase(packed, tmp_path / "new", EraseRequest(people=("test/99",), new_secret=True, **notes))
    assert not notes["tombstones"].exists()


# --- packing with tombstones


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_the_erased_do_not_come_back(erased: Path, crops: Path, notes: dict, tmp_path: Path, format_: str) -> None:
    again = pack_folder(crops, tmp_path / "again", version="2.0.0", format=format_, **notes)
    assert {pid for shard in read_manifest(again).shards for pid in shard.pids} == {0, 1, 3}
    rows = rejected_rows(again)
    assert len(rows) == 9
    assert {(row["reason"], row["detail"]) for row in rows} == {("erased", "its person")}
    assert packed_images(again) == packed_images(erased)


def test_they_do_not_come_back_under_another_number_or_name(
    erased: Path, crops: Path, notes: dict, tmp_path: Path
) -> None:
    (crops / "query/00002_c000s0_760487.jpg").rename(crops / "query/00777_c000s0_1.jpg")
    kept = crops / "bounding_box_test/00003_c000s0_760490.jpg"
    kept.write_bytes((crops / "bounding_box_test/00002_c000s0_760490.jpg").read_bytes())
    encoded_anew = crops / "query/00778_c000s0_1.jpg"
    encoded_anew.write_bytes((crops / "query/00777_c000s0_1.jpg").read_bytes() + b"\0")
    again = pack_folder(crops, tmp_path / "again", **notes)
    details = {row["path"]: row["detail"] for row in rejected_rows(again)}
    assert details["query/00777_c000s0_1.jpg"] == details[str(kept.relative_to(crops))] == "its image"
    assert "query/00778_c000s0_1.jpg" not in details, "the pages say that such a copy passes"


def test_a_key_stays_out_whoever_is_said_to_be_in_it(packed: Path, notes: dict, tmp_path: Path) -> None:
    key = "query/00001_c000s0_760487"
    erase(packed, tmp_path / "new", EraseRequest(keys=(key,), new_secret=True, **notes))
    tombstones = read_tombstones(notes["tombstones"], read_secret(notes["secret"]))
    assert tombstones.names(Sample("query/", "00001_c000s0_760487.png", "query", 55, 0)) == "its key"
    assert tombstones.names(Sample("query/", "00001_c001s0_760487.jpg", "query", 1, 1)) == ""


def test_the_version_before_does_not_bring_them_back(
    erased: Path, packed: Path, crops: Path, notes: dict, tmp_path: Path
) -> None:
    """Shards of the old version are kept only where they hold none of them."""
    again = go_on(crops, tmp_path / "again", version="1.1.0", previous=packed, **notes)
    assert again.rejected == {Reason.ERASED: 9}
    assert tree(again.folder) == tree(erased)


@pytest.mark.parametrize("how", ["people", "images"])
def test_a_resumed_pack_keeps_no_shard_that_holds_them(
    erased: Path, crops: Path, notes: dict, tmp_path: Path, how: str
) -> None:
    if how == "images":  # which only the worker that reads them can tell
        for number, path in enumerate(sorted(crops.glob("*/00002_*"))):
            path.rename(path.with_name(f"0077{number}_c000s0_1.jpg"))
    settle()
    options = {"shard_rows": 6}
    stop_pack(crops, tmp_path / "again", after=20, **options)
    again = go_on(crops, tmp_path / "again", **options, **notes)
    assert again.rejected == {Reason.ERASED: 9}
    assert tree(again.folder) == tree(pack_folder(crops, tmp_path / "fresh", name="entire-id", **options, **notes))


def test_a_resumed_pack_goes_on_with_the_same_tombstones(
    erased: Path, crops: Path, notes: dict, tmp_path: Path
) -> None:
    settle()
    stop_pack(crops, tmp_path / "again", after=10, shard_rows=6, **notes)
    again = go_on(crops, tmp_path / "again", shard_rows=6, **notes)
    assert again.num_resumed > 0
    assert again.rejected == {Reason.ERASED: 9}


def test_two_jobs_reject_the_same(erased: Path, crops: Path, notes: dict, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(crops.glob("*/00002_*"))):
        path.rename(path.with_name(f"0077{number}_c000s0_1.jpg"))
    one, two = (go_on(crops, tmp_path / f"jobs-{jobs}", shard_rows=6, jobs=jobs, **notes) for jobs in (1, 2))
    assert one.rejected == two.rejected == {Reason.ERASED: 9}
    assert tree(one.folder) == tree(two.folder)


def test_tombstones_that_meet_nobody_change_no_byte(erased: Path, crops: Path, notes: dict, tmp_path: Path) -> None:
    for path in crops.glob("*/00002_*"):
        path.unlink()
    assert len(crop_names()) == 36
    one = pack_folder(crops, tmp_path / "one", **notes)
    assert tree(one) == tree(pack_folder(crops, tmp_path / "two"))
