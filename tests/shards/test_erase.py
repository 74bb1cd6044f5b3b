"""Erasing: who goes, what stays byte for byte, and that nothing of them is left anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entire_id.errors import CorruptCropError, ErasureError, ManifestError, OutputExistsError, TombstonesError
from entire_id.records import PART_OF_SPLIT, Person
from entire_id.shards import erase as erasing
from entire_id.shards.erase import EraseReport, EraseRequest, erase, plan_erasure, read_names
from entire_id.shards.manifest import read_manifest
from entire_id.shards.remains import Removed, ShardSearch, find_needles, search_shard, trace_of
from entire_id.shards.verify import verify

from builders import CAMERAS, WATCH, StoppedError, image_bytes, pack_folder, packed_images, settle, tree, write_crops

FORMATS = ["parquet", "webdataset"]
FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


def write_marked(source: Path, names: list[str]) -> Path:
    """Write crops that are one picture each, told apart by their name behind its end."""
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(image_bytes() + f"<{name:-<80}>".encode())
    return source


def some_names() -> list[str]:
    """Train and test people of the same numbers, and some junk."""
    names = [f"{folder}/{pid:05d}_c{c:03d}s0_{c}.jpg" for folder in FOLDERS for pid in range(12) for c in range(3)]
    return names + [f"bounding_box_test/-1_c{number % 3:03d}s0_{number}.jpg" for number in range(9)]


@pytest.fixture(params=FORMATS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Version 1.0.0 of 12 people in each part and some junk, in shards of 12 crops on two continents."""
    source = write_marked(tmp_path / "source", some_names())
    (source / "cameras.csv").write_text("camid,continent\n0,asia\n1,asia\n2,europe\n")
    return pack_folder(source, tmp_path / "old", format=request.param, shard_rows=12)


def take_out(old: Path, out: str = "new", **request: object) -> EraseReport:
    return erase(old, old.parent / out, EraseRequest(**request))


def key_of(name: str) -> str:
    folder, _, rest = name.partition("/")
    return f"{FOLDERS[folder]}/{rest.removesuffix('.jpg')}"


# --- what remains is what packing the rest would give


NAMES = st.builds(
    "{}/{}_c{:03d}s0_{}.jpg".format,
    st.sampled_from(sorted(FOLDERS)),
    st.sampled_from(["-1", "00000", "00001", "00002", "00007"]),
    st.integers(0, 3),
    st.integers(0, 20),
)


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=25)
@given(
    names=st.lists(NAMES, min_size=2, max_size=60, unique=True),
    gone=st.lists(st.integers(0, 59), min_size=1, max_size=4),
    whole=st.booleans(),
    cameras=st.sampled_from(["", CAMERAS, "camid,continent,note\n0,asia,\n3,,a b\n8,,\n9,europe,\n"]),
    shard_rows=st.sampled_from([3, 10, 1000]),
)
def test_the_bytes_are_those_of_packing_the_rest_after_the_old_version(
    format_: str, names: list[str], gone: list[int], whole: bool, cameras: str, shard_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as home:
        source = write_marked(Path(home) / "source", names)
        if cameras:
            (source / "cameras.csv").write_text(cameras)
        options = {"format": format_, "shard_rows": shard_rows}
        old = pack_folder(source, Path(home) / "old", **options)
        chosen = {names[number % len(names)] for number in gone}
        people = {name for name in chosen if whole and not Path(name).name.startswith("-1")}
        wanted = {Person("train" if "train" in name else "test", int(Path(name).name[:5])) for name in people}
        request = EraseRequest(tuple(map(str, wanted)), tuple(map(key_of, sorted(chosen - people))))
        before = tree(old)
        for name in names:
            part = "train" if "train" in name else "test"
            if name in chosen or Person(part, int(Path(name).name.split("_")[0])) in wanted:
                (source / name).unlink()
        if not any(source.rglob("*.jpg")):
            with pytest.raises(ErasureError, match="nothing would remain"):
                erase(old, Path(home) / "new", request)
            return
        report = erase(old, Path(home) / "new", request)
        packed = pack_folder(source, Path(home) / "packed", version="1.1.0", previous=old, **options)
        assert tree(report.folder) == tree(packed)
        assert tree(old) == before
        assert verify(report.folder).problems == ()


def test_names_below_folders_with_dots_and_other_endings_come_back_as_they_were(tmp_path: Path) -> None:
    names = ["a.b/c%2Ed.e.jpg", "a.b/Ä ö.png", "x.png", "y.jpg"]
    write_crops(tmp_path, names)
    rows = "".join(f"{name},{pid},0,gallery\n" for pid, name in enumerate(names))
    for format_ in FORMATS:
        (tmp_path / "crops.csv").write_text("path,pid,camid,split\n" + rows)
        old = pack_folder(tmp_path / "crops.csv", tmp_path / format_, format=format_)
        report = erase(old, tmp_path / f"{format_}-new", EraseRequest(people=("3",)))
        (tmp_path / "crops.csv").write_text("path,pid,camid,split\n" + rows.replace("y.jpg,3,0,gallery\n", ""))
        packed = pack_folder(
            tmp_path / "crops.csv", tmp_path / f"{format_}-packed", format=format_, version="1.1.0", previous=old
        )
        assert tree(report.folder) == tree(packed)


def test_only_the_shards_that_held_them_are_written(old: Path) -> None:
    manifest = read_manifest(old)
    touched = {shard.path for shard in manifest.shards if PART_OF_SPLIT[shard.split] == "test" and 7 in shard.pids}
    report = take_out(old, people=("test/7",))
    assert (report.num_people, report.num_crops, report.num_copies) == (1, 6, 0)
    assert report.num_rewritten == len(touched) < len(manifest.shards) == report.num_rewritten + report.num_kept
    for shard in manifest.shards:
        for path in (shard.path, shard.meta_path):
            assert (report.folder / path).samefile(old / path) == (shard.path not in touched)
    people = {Person(PART_OF_SPLIT[s.split], pid) for s in report.manifest.shards for pid in s.pids}
    assert Person("train", 7) in people
    assert Person("test", 7) not in people


def test_two_jobs_give_the_same_bytes(old: Path) -> None:
    one = take_out(old, "one", people=("test/7", "train/3"))
    two = take_out(old, "two", people=("test/7", "train/3"), jobs=2)
    assert tree(one.folder) == tree(two.folder)


def test_a_shard_of_which_nothing_remains_vanishes(old: Path) -> None:
    shard = next(shard for shard in read_manifest(old).shards if shard.split == "query")
    report = take_out(old, people=tuple(f"test/{pid}" for pid in shard.pids))
    assert shard.path not in {one.path for one in report.manifest.shards}
    assert not (report.folder / shard.path).exists()
    assert report.num_dropped >= 1
    assert verify(report.folder).problems == ()


def test_no_bytes_of_a_removed_image_remain_anywhere(old: Path) -> None:
    images = packed_images(old)
    report = take_out(old, people=("train/5",), keys=("gallery/-1_c001s0_4",))
    gone = images.keys() - packed_images(report.folder).keys()
    assert len(gone) == 4
    files = tree(report.folder)
    for key in gone:
        assert not [path for path, data in files.items() if images[key] in data or key.encode() in data]
    assert packed_images(report.folder) == {key: images[key] for key in images.keys() - gone}


def test_copies_of_an_image_go_with_it_whatever_they_are_called(tmp_path: Path) -> None:
    source = write_marked(tmp_path / "source", some_names())
    same = (source / "query/00003_c000s0_0.jpg").read_bytes()
    for name in ("bounding_box_train/00008_c002s0_2.jpg", "bounding_box_test/-1_c000s0_0.jpg"):
        (source / name).write_bytes(same)
    report = take_out(pack_folder(source, tmp_path / "old", shard_rows=12), keys=("query/00003_c000s0_0",))
    assert (report.num_crops, report.num_copies, report.num_people) == (3, 2, 0)
    assert same not in packed_images(report.folder).values()


def test_a_crop_that_holds_the_bytes_of_a_removed_one_must_go_too(tmp_path: Path) -> None:
    source = write_marked(tmp_path / "source", some_names())
    with (source / "query/00004_c000s0_0.jpg").open("ab") as file:
        file.write((source / "query/00003_c000s0_0.jpg").read_bytes())
    old = pack_folder(source, tmp_path / "old")
    with pytest.raises(ErasureError, match="the image of 'query/00004_c000s0_0' holds the bytes of one"):
        take_out(old, people=("test/3",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "source"]
    assert take_out(old, people=("test/3",), keys=("query/00004_c000s0_0",)).num_crops == 7


# --- who is meant


def test_a_bare_number_is_taken_where_only_one_part_has_it(packed: Path) -> None:
    assert plan_erasure(packed, EraseRequest(people=("2",))).removed.people == {Person("test", 2)}


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        ({"people": ("7",)}, "'7' may be either of two people, train/7 and test/7"),
        ({"people": ("test/99",)}, "there is no person 'test/99'"),
        ({"people": ("99",)}, "there is no person '99'"),
        ({"keys": ("query/no", "gallery/no", "nowhere/no")}, "no crop 'gallery/no', 'nowhere/no', 'query/no'"),
        ({"people": ("test/1",), "keys": ("query/no",)}, "no crop 'query/no'"),
        ({"people": ("test/1",), "version": "1.0.0"}, "its version is 1.0.0, and 1.0.0 does not follow"),
        ({"people": ("test/1",), "version": "0.9.9"}, "0.9.9 does not follow"),
        ({"people": ("test/1",), "log": Path("l"), "reason": "test/1 asked"}, "the reason names 'test/1'"),
        ({"people": tuple(f"{p}/{n}" for p in ("train", "test") for n in range(12))}, ""),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    old: Path, monkeypatch: pytest.MonkeyPatch, request_: dict, what: str
) -> None:
    monkeypatch.chdir(old.parent)
    if not what:
        junk = tuple(f"gallery/-1_c{number % 3:03d}s0_{number}" for number in range(9))
        request_, what = request_ | {"keys": junk}, "nothing would remain"
    with pytest.raises(ErasureError, match=what):
        take_out(old, **request_)
    assert sorted(path.name for path in old.parent.iterdir()) == ["old", "source"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"people": ("val/3",)},
        {"people": ("-1",)},
        {"people": ("test/-1",)},
        {"people": ("3",), "version": "2"},
        {"people": ("3",), "jobs": 0},
        {"people": ("3",), "tombstones": Path("t")},
        {"people": ("3",), "secret": Path("s")},
        {"people": ("3",), "new_secret": True},
        {"people": ("3",), "log": Path("l")},
        {"people": ("3",), "reason": "asked"},
    ],
)
def test_a_request_that_cannot_be_is_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        EraseRequest(**fields)


def test_a_list_names_people_and_keys(old: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\ufefftest/3\n\n  query/00005_c001s0_1 \r\n")
    plan = plan_erasure(old, EraseRequest(listed=read_names(tmp_path / "list")))
    assert plan.removed.people == {Person("test", 3)}
    assert len(plan.removed.keys) == 7
    (tmp_path / "list").write_text("\n")
    with pytest.raises(ErasureError, match="names nobody"):
        read_names(tmp_path / "list")
    with pytest.raises(ErasureError, match="cannot be read"):
        read_names(tmp_path / "none")


def test_a_line_that_may_be_a_person_or_a_crop_is_refused(tmp_path: Path) -> None:
    write_crops(tmp_path, ["17.jpg", "18.jpg"])
    (tmp_path / "crops.csv").write_text("path,pid,camid,split\n17.jpg,18,0,train\n18.jpg,17,0,train\n")
    old = pack_folder(tmp_path / "crops.csv", tmp_path / "old")
    with pytest.raises(ErasureError, match="'train/17' is a person and a crop"):
        take_out(old, listed=("train/17",))
    assert plan_erasure(old, EraseRequest(people=("train/17",))).removed.keys == {"train/18"}
    assert plan_erasure(old, EraseRequest(keys=("train/17",))).removed.keys == {"train/17"}


# --- where it goes


def test_an_output_that_holds_something_or_lies_in_the_data_set_is_refused(old: Path) -> None:
    (old.parent / "full").mkdir()
    (old.parent / "full" / "file").write_text("mine")
    before = tree(old)
    for out in ("full", "old", "old/new", "."):
        with pytest.raises(OutputExistsError):
            take_out(old, out, people=("test/3",))
    assert tree(old) == before


def test_notes_inside_a_data_set_are_refused(old: Path) -> None:
    secret = old.parent / "secret"
    for place in (old / "meta" / "x", old.parent / "new" / "x"):
        for names in (
            {"tombstones": place, "secret": secret, "new_secret": True},
            {"tombstones": old.parent / "t", "secret": place, "new_secret": True},
            {"log": place, "reason": "asked"},
        ):
            with pytest.raises(TombstonesError, match="must not lie in a data set"):
                take_out(old, people=("test/3",), **names)
    assert not secret.exists()


def test_a_log_that_cannot_be_written_is_found_out_before_the_work(old: Path) -> None:
    with pytest.raises(ErasureError, match="cannot be written"):
        take_out(old, people=("test/3",), log=old.parent / "no" / "log", reason="asked")
    assert not (old.parent / "new").exists()


def test_the_log_says_what_was_done_and_why_but_not_to_whom(old: Path) -> None:
    log = old.parent / "log.jsonl"
    log.write_text("half a line")
    first = take_out(old, people=("test/3",), log=log, reason="consent withdrawn")
    erase(first.folder, old.parent / "newer", EraseRequest(keys=("query/00004_c000s0_0",), log=log, reason="blur"))
    half, *lines = log.read_text().splitlines()
    assert half == "half a line"
    one, two = map(json.loads, lines)
    assert (one["from_version"], one["to_version"], two["to_version"]) == ("1.0.0", "1.1.0", "1.2.0")
    assert one["to_content_sha256"] == two["from_content_sha256"] == first.manifest.content_sha256
    assert (one["people"], one["crops"], one["copies"], one["reason"]) == (1, 6, 0, "consent withdrawn")
    assert (two["people"], two["crops"], two["shards"]) == (0, 1, 1)
    assert one["time"].endswith("+00:00")
    assert not any(name in log.read_text() for name in ("test/3", "00003", "00004", str(old)))


# --- damage


def test_a_damaged_data_set_is_not_made_a_new_version_of(old: Path) -> None:
    kept = next(s for s in read_manifest(old).shards if s.split == "train")
    held = next(s for s in read_manifest(old).shards if s.split == "query" and 3 in s.pids)
    for path in (kept.path, kept.meta_path, held.path, held.meta_path, "cameras.csv"):
        sound = (old / path).read_bytes()
        (old / path).write_bytes(sound[:-20] + b"damage" + sound[-14:])
        with pytest.raises(ManifestError, match=r"entire-id verify"):
            take_out(old, people=("test/3",))
        assert not (old.parent / "new").exists()
        (old / path).write_bytes(sound)
    assert take_out(old, people=("test/3",)).num_crops == 6


def test_an_image_that_is_damaged_is_found_by_its_checksum(old: Path) -> None:
    shard = next(s for s in read_manifest(old).shards if s.split == "query" and 3 in s.pids)
    data = (old / shard.path).read_bytes()
    (old / shard.path).write_bytes(data.replace(b"<query/00003_c000", b"<query/00003_cXXX"))
    with pytest.raises(CorruptCropError):
        take_out(old, people=("test/3",))


# --- a run that is interrupted


def test_a_stopped_run_goes_on_where_it_was(old: Path) -> None:
    settle()
    request, out = EraseRequest(people=("test/3", "train/3")), old.with_name("new")

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "searching":
            raise StoppedError

    with pytest.raises(StoppedError):
        erase(old, out, request, interrupt)
    assert not out.exists()
    again = erase(old, out, request)
    assert again.num_resumed == again.num_rewritten > 3
    assert tree(out) == tree(take_out(old, "other", people=request.people).folder)


def test_a_stopped_run_that_goes_on_with_another_request_keeps_nothing_of_it(old: Path) -> None:
    settle()

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "searching":
            raise StoppedError

    with pytest.raises(StoppedError):
        erase(old, old.with_name("new"), EraseRequest(people=("test/3",)), interrupt)
    take_out(old, people=("test/4",))
    assert tree(old.with_name("new")) == tree(take_out(old, "other", people=("test/4",)).folder)


KILLED_RUN = f"""
import sys
from entire_id.shards.erase import EraseRequest, erase

old, out, last = sys.argv[1:]
{WATCH}
sys.addaudithook(watch)
notes = {{"tombstones": Path(home, "t"), "secret": Path(home, "s"), "new_secret": True}}
erase(old, out, EraseRequest(people=("test/3",), log=Path(home, "log"), reason="asked", **notes))
print(steps)
"""


def run_killed(old: Path, out: Path, last: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED_RUN, str(old), str(out), str(last)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_killed_run_leaves_nothing_under_the_name_and_the_same_call_goes_on(tmp_path: Path) -> None:
    """Killed at the first steps, in the middle, and at each of the last."""
    old = pack_folder(write_marked(tmp_path / "source", some_names()), tmp_path / "old", shard_rows=12)
    (tmp_path / "counted").mkdir()
    whole = run_killed(old, tmp_path / "counted" / "new", 0)
    steps, expected = int(whole.stdout), tree(tmp_path / "counted" / "new")
    assert steps > 30, whole.stderr
    for step in (1, 3, steps // 3, steps // 2, *range(steps - 9, steps + 1)):
        home = tmp_path / f"killed-{step}"
        home.mkdir()
        died = run_killed(old, home / "new", step)
        assert died.returncode == -signal.SIGKILL, died.stderr
        if (home / "new").exists():  # killed after the rename: it must be whole, and so are the tombstones
            assert tree(home / "new") == expected
            assert len((home / "t").read_text().splitlines()) == 1 + 1 + 6 + 6
            continue
        assert not (home / "log").exists()
        done = run_killed(old, home / "new", 0)
        assert done.returncode == 0, done.stderr
        assert tree(home / "new") == expected
        assert sorted(path.name for path in home.iterdir()) == ["log", "new", "s", "t"]
        assert len((home / "t").read_text().splitlines()) == 1 + 1 + 6 + 6


# --- the search for what remains


def search(folder: Path, removed: Removed, path: str) -> list[str]:
    manifest = read_manifest(folder)
    shard = next(shard for shard in manifest.shards if shard.path == path)
    return search_shard(ShardSearch(folder, shard, manifest.format, removed, is_new=True))


def test_the_search_finds_rows_that_are_still_there(old: Path) -> None:
    shard = next(s for s in read_manifest(old).shards if s.split == "query" and 3 in s.pids)
    plan = plan_erasure(old, EraseRequest(people=("test/3",)))
    nobody, nothing = frozenset[Person](), frozenset[str]()
    assert search(old, plan.removed, shard.path)
    assert "row" in search(old, Removed(frozenset({Person("test", 3)}), nothing, ()), shard.path)[0]
    assert "row" in search(old, Removed(nobody, plan.removed.keys, ()), shard.path)[0]
    assert "an image of it" in search(old, Removed(nobody, nothing, plan.removed.traces), shard.path)[0]
    assert search(old, Removed(nobody, frozenset({"query/other"}), ()), shard.path) == []


def test_the_search_finds_bytes_that_no_row_shows(old: Path) -> None:
    images = packed_images(old)
    report = take_out(old, people=("test/3",))
    removed = plan_erasure(old, EraseRequest(people=("test/3",))).removed
    shard = next(s for s in report.manifest.shards if s.split == "query")
    path = report.folder / shard.path
    sound = path.read_bytes()
    image = images["query/00003_c000s0_0"]
    for stray in (image, image[:-10], image[20:], b"query/00003_c000s0_0"):
        assert search(report.folder, removed, shard.path) == []
        path.write_bytes(sound + stray if path.suffix == ".tar" else sound[:4] + stray + sound[4:])
        assert [what for what in search(report.folder, removed, shard.path) if "at" in what], stray
        path.unlink()  # linked to nothing: it was written anew
        path.write_bytes(sound)


def test_erase_refuses_what_the_search_finds(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is kept although it holds somebody who goes: the fault that the search is for."""
    plan = erasing.plan_erasure

    def forgetful(*arguments: object) -> erasing.ErasePlan:
        found = plan(*arguments)
        return erasing.replace(found, touched=frozenset(sorted(found.touched)[1:]))

    monkeypatch.setattr(erasing, "plan_erasure", forgetful)
    with pytest.raises(ErasureError, match="something would remain"):
        take_out(old, people=("test/3",))
    assert not (old.parent / "new").exists()


def test_an_owners_text_that_names_a_removed_crop_is_found(tmp_path: Path) -> None:
    source = write_marked(tmp_path / "source", some_names())
    (source / "cameras.csv").write_text("camid,continent,note\n0,asia,see query/00003_c000s0_0\n1,asia,test/33\n")
    old = pack_folder(source, tmp_path / "old")
    with pytest.raises(ErasureError, match=r"cameras\.csv of the new version names"):
        take_out(old, people=("test/3",))
    assert take_out(old, people=("test/4",)).num_crops == 6


@settings(max_examples=200)
@given(st.data())
def test_needles_are_found_wherever_they_are(data: st.DataObject) -> None:
    letters = st.binary(max_size=60).map(lambda text: bytes(byte & 1 for byte in text))
    hay = data.draw(letters)
    needles = data.draw(st.lists(letters.filter(lambda text: 8 <= len(text) <= 20), max_size=5, unique=True))
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "hay"
        path.write_bytes(hay)
        found = sorted(find_needles(path, needles))
    expected = [
        (place, n) for n, needle in enumerate(needles) for place in range(len(hay)) if hay[place:].startswith(needle)
    ]
    assert found == sorted(expected)


def test_needles_across_windows_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from entire_id.shards import remains

    monkeypatch.setattr(remains, "_WINDOW_BYTES", 64)
    hay = bytearray(os.urandom(1000))
    needle = os.urandom(16)
    for place in range(0, 980, 49):
        hay[place : place + 16] = needle
    (tmp_path / "hay").write_bytes(hay)
    assert [place for place, _ in find_needles(tmp_path / "hay", [needle])] == list(range(0, 980, 49))


def test_a_trace_is_a_varied_piece_of_the_image() -> None:
    image = image_bytes(3)
    trace = trace_of(image, "0" * 16)
    assert image[trace.start :].startswith(trace.piece)
    assert len({*trace.piece}) > 8
    assert trace_of(b"\xff\xd8\xff", "").piece == b"\xff\xd8\xff"


@pytest.mark.parametrize("same", ["tombstones", "secret"])
def test_the_log_is_a_file_of_its_own(same: str, tmp_path: Path) -> None:
    files = {"tombstones": tmp_path / "t", "secret": tmp_path / "s", "log": tmp_path / "x" / ".." / same[0]}
    with pytest.raises(ValueError, match="files of their own"):
        EraseRequest(people=("test/1",), reason="asked", **files)
