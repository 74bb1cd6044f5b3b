"""Every crop of a source as arrays, and the list of those left out."""

from __future__ import annotations

import csv
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entire_id.errors import CropRejectedError, OutputExistsError
from entire_id.records import Reason, Rejected, Sample, no_progress
from entire_id.shards.listing import RejectedLog, list_crops, samples_of
from entire_id.shards.plan import keyed_hash


class ListedSource:
    """A source of records that were made up, without files."""

    name = "made up"
    cameras = ()

    def __init__(self, items: Iterable[Sample | Rejected]) -> None:
        self._items = list(items)

    def samples(self):
        return iter(self._items)

    def read(self, path):
        raise FileNotFoundError(path)


def sample(key: str, path: str = "", **fields) -> Sample:
    """Return a sample of that key; a `path` of another ending tells it from others."""
    split, _, name = key.partition("/")
    made = Sample("", path or f"{name}.jpg", split, **{"pid": 1, "camid": 2} | fields)
    assert made.key == key
    return made


def list_items(tmp_path, items, *, strict=False, seed=0):
    with RejectedLog(tmp_path / "out.rejected.csv", strict=strict) as log:
        listing = list_crops(
            ListedSource(items), seed, tmp_path.with_name(tmp_path.name + "-listing"), log, no_progress
        )
        log.publish()
    return listing, log


def whole(listing):
    return listing.take(np.arange(len(listing)))


def keys_of(table) -> list[str]:
    return [found.key for found in samples_of(table)]


def paths_of(table) -> list[str]:
    return [found.path for found in samples_of(table)]


def read_log(path):
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines))


# ---------------------------------------------------------------- listing


def test_every_field_of_a_sample_is_kept(tmp_path):
    items = [
        Sample("a/", "1.jpg", "train", 2**31 - 1, 2**31 - 1, 2**31 - 1, 2**63 - 1, "asia"),
        Sample("b.c/", "é\n.jpg", "gallery", -1, 0),
    ]
    listing, _ = list_items(tmp_path, items)
    assert list(samples_of(whole(listing))) == items
    assert whole(listing).column_names == list(Sample._fields)


def test_the_rows_to_place_say_the_same_as_the_table(tmp_path):
    items = [
        sample("query/1", continent="europe", pid=5),
        sample("gallery/1", continent="asia", pid=0),
        sample("train/1", pid=-1),
        sample("query/2", continent="asia"),
    ]
    listing, _ = list_items(tmp_path, items, seed=7)
    rows = listing.rows
    assert [rows.splits[code] for code in rows.split] == [item.split for item in items]
    assert [rows.continents[code] for code in rows.continent] == [item.continent for item in items]
    assert rows.pid.tolist() == [item.pid for item in items]
    assert rows.key_hash.tolist() == [keyed_hash(item.key, 7) for item in items]
    assert rows.continents == ("asia", "europe", "unknown")


def test_rows_are_taken_in_the_order_asked_for(tmp_path):
    listing, _ = list_items(tmp_path, [sample(f"query/{number}") for number in range(5)])
    assert keys_of(listing.take(np.array([3, 0, 3]))) == ["query/3", "query/0", "query/3"]


@pytest.mark.parametrize("rows_at_once", [1, 4, 1000])
def test_tables_are_those_that_are_taken_one_by_one(tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr("entire_id.shards.listing._ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr("entire_id.shards.listing._BATCH_ROWS", 3)
    twins = [sample("query/4", "4.png"), sample("query/9", "9.bmp")]
    listing, _ = list_items(tmp_path, [*twins, *(sample(f"query/{number}") for number in range(20))])
    parts = [np.array(part, int) for part in ([5, 4], [], [19, 0, 7, 7], range(20), [2])]
    tables = list(listing.tables(iter(parts)))
    assert [keys_of(table) for table in tables] == [keys_of(listing.take(part)) for part in parts]
    assert [found.name for found in samples_of(tables[3])] == [found.name for found in samples_of(whole(listing))]
    assert len({*keys_of(tables[3])}) == 20


def test_cameras_are_counted_without_the_crops_that_are_left_out(tmp_path):
    items = [sample("query/a", "a.jpg", camid=3), sample("query/a", "a.png", camid=4), sample("query/b", camid=3)]
    listing, _ = list_items(tmp_path, items)
    assert dict(listing.views) == {(3, "unknown"): 2}


@pytest.mark.parametrize("items", [[], [Rejected("a", Reason.EMPTY)]])
def test_a_source_without_a_crop_lists_nothing(tmp_path, items):
    listing, log = list_items(tmp_path, items)
    rows = listing.rows
    assert len(listing) == len(whole(listing)) == len(rows.pid) == len(rows.split) == len(rows.key_hash) == 0
    assert log.counts.total() == len(items)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_of_several_files_with_one_key_that_of_the_smallest_path_is_kept(tmp_path, order):
    items = [sample("query/a", "a.jpg"), sample("query/b"), sample("query/a", "a.png"), sample("query/a", "a.JPG")]
    listing, log = list_items(tmp_path, [items[number] for number in order])
    assert sorted(paths_of(whole(listing))) == ["a.JPG", "b.jpg"]
    assert len(listing.rows.key_hash) == 2
    assert log.counts == {Reason.DUPLICATE_KEY: 2}
    assert read_log(log.path)[1:] == [
        ["a.jpg", "duplicate-key", "another file is query/a too"],
        ["a.png", "duplicate-key", "another file is query/a too"],
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_rows_of_one_path_one_is_kept_whatever_their_order(tmp_path, order):
    """A table may list a file twice, even as two people."""
    items = [sample("query/a", pid=7), sample("query/a", pid=3), sample("query/a", pid=3)]
    listing, log = list_items(tmp_path, items[::order])
    assert [found.pid for found in samples_of(whole(listing))] == [3]
    assert log.counts == {Reason.DUPLICATE_KEY: 2}


def test_one_key_in_two_folders_goes_to_the_smallest_path(tmp_path):
    items = [Sample(folder, "a.jpg", "query", 1, 1) for folder in ("z/", "b/", "b.c/")]
    listing, _ = list_items(tmp_path, items)
    assert paths_of(whole(listing)) == ["b.c/a.jpg"]


def test_one_stem_in_two_splits_is_no_duplicate(tmp_path):
    listing, log = list_items(tmp_path, [sample("query/a"), sample("gallery/a")])
    assert len(listing) == 2
    assert not log.counts


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_each_key_is_kept_once_and_the_counts_add_up(tmp_path, names):
    items = [sample(f"query/{name}", f"{name}.{number}") for number, name in enumerate(names)]
    listing, log = list_items(tmp_path, items)
    smallest = {name: min(item.path for item in items if item.name.startswith(name)) for name in names}
    kept = dict(zip(keys_of(whole(listing)), paths_of(whole(listing)), strict=True))
    assert kept == {f"query/{name}": path for name, path in smallest.items()}
    assert len(kept) + log.counts.total() == len(names)


def test_more_crops_than_one_batch_holds_are_listed_together(tmp_path):
    number = (1 << 16) + 10
    items = [sample(f"gallery/{n}", pid=n % 7, continent="asia") for n in range(number)]
    items += [sample("query/last", continent="europe"), sample("gallery/0", "0.png"), sample("gallery/0", "0.jpx")]
    listing, log = list_items(tmp_path, items)
    assert len(listing) == number + 1
    assert log.counts == {Reason.DUPLICATE_KEY: 2}
    rows = listing.rows
    assert [rows.continents[code] for code in rows.continent[[0, -1]]] == ["asia", "europe"]
    assert [rows.splits[code] for code in rows.split[[0, -1]]] == ["gallery", "query"]
    assert rows.key_hash[-1] == keyed_hash("query/last", 0)
    assert keys_of(listing.take(np.array([number, 0]))) == ["query/last", "gallery/0"]


def test_listing_tells_how_far_it_is(tmp_path):
    told = []
    with RejectedLog(tmp_path / "r.csv", strict=False) as log:
        items = (sample(f"query/{number}") for number in range(5000))
        list_crops(ListedSource(items), 0, tmp_path / "listing", log, lambda *args: told.append(args))
    assert [stage for stage, *_ in told] == ["listing"] * len(told)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told


# ---------------------------------------------------------------- the log of rejected files


def test_the_log_is_sorted_by_path_whatever_the_order_of_its_rows(tmp_path):
    paths = ["b", "a\nb", "a", "Z", "é", "a,b", "a/b"]
    for shift in range(len(paths)):
        with RejectedLog(tmp_path / "r.csv", strict=False) as log:
            for path in [*paths[shift:], *paths[:shift]]:
                log.add(Rejected(path, Reason.EMPTY))
            log.publish()
        assert [row[0] for row in read_log(tmp_path / "r.csv")[1:]] == sorted(paths)


def test_the_log_lists_path_reason_and_detail_and_counts_by_reason(tmp_path):
    awkward = 'a,"b"\nc/é.jpg'
    rejections = [Rejected(awkward, Reason.NAME, "x, y"), Rejected("b", Reason.EMPTY), Rejected("c", Reason.EMPTY)]
    with RejectedLog(tmp_path / "r.csv", strict=False) as log:
        for rejected in rejections[::-1]:
            log.add(rejected)
        assert log.publish() == tmp_path / "r.csv"
    assert read_log(tmp_path / "r.csv") == [
        ["path", "reason", "detail"],
        [awkward, "name", "x, y"],
        ["b", "empty", ""],
        ["c", "empty", ""],
    ]
    assert log.counts == {Reason.NAME: 1, Reason.EMPTY: 2}
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_no_rejection_leaves_no_file_and_takes_an_old_one_away(tmp_path):
    (tmp_path / "r.csv").write_text("path,reason,detail\nold,empty,\n")
    with RejectedLog(tmp_path / "r.csv", strict=False) as log:
        assert log.publish() is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_the_old_list_as_it_was(tmp_path):
    (tmp_path / "r.csv").write_text("path,reason,detail\nold,empty,\n")

    def fail():
        with RejectedLog(tmp_path / "r.csv", strict=False) as log:
            log.add(Rejected("a", Reason.EMPTY))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [
        ("r.csv", "path,reason,detail\nold,empty,\n")
    ]


def test_strict_raises_at_the_first_with_its_path_and_reason(tmp_path):
    items = [sample("query/a"), Rejected("bad.jpg", Reason.NAME, "why"), Rejected("worse.jpg", Reason.EMPTY)]
    with pytest.raises(CropRejectedError) as caught:
        list_items(tmp_path, items, strict=True)
    assert (caught.value.path, caught.value.reason, caught.value.detail) == ("bad.jpg", "name", "why")
    assert list(tmp_path.iterdir()) == []


def test_strict_raises_at_a_duplicate_too(tmp_path):
    with pytest.raises(CropRejectedError, match="duplicate-key"):
        list_items(tmp_path, [sample("query/a", "a.jpg"), sample("query/a", "a.png")], strict=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_that_name_that_no_run_wrote_is_refused_and_untouched(tmp_path):
    (tmp_path / "r.csv").write_text("years of work")
    with pytest.raises(OutputExistsError, match="something else"), RejectedLog(tmp_path / "r.csv", strict=False):
        pass
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("r.csv", "years of work")]
