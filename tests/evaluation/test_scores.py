from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from entire_id.errors import EvaluationError
from entire_id.evaluation.comparison import compare
from entire_id.evaluation.features import score_blocks
from entire_id.evaluation.labels import Labels
from entire_id.evaluation.protocols import PROTOCOLS, Protocol
from entire_id.evaluation.ranking import evaluate


def people(noise: float = 1.0, num_query: int = 120, num_gallery: int = 600, seed: int = 0):
    """The arguments of `evaluate`, and columns of the queries."""
    rng = np.random.default_rng(seed)
    number = num_query + num_gallery
    pids, camids = rng.integers(0, 30, number), rng.integers(0, 4, number)
    centres = rng.normal(size=(30, 16))
    features = (centres[pids] + noise * rng.normal(size=(number, 16))).astype(np.float32)
    parts = [part for values in (features, pids, camids) for part in (values[:num_query], values[num_query:])]
    columns = {"width": rng.integers(20, 200, num_query), "place": np.array(["asia", "europe"])[camids[:num_query] % 2]}
    return parts, columns


@pytest.fixture(scope="module")
def scores():
    arrays, columns = people()
    return evaluate(*arrays, query_columns=columns)


def test_plain_numbers(scores) -> None:
    plain = scores.to_dict()
    assert list(plain) == [
        "mAP", "rank1", "rank5", "rank10", "mINP", "r_precision", "num_query", "num_valid_query", "num_gallery",
        "skipped", "ambiguity", "protocol", "tie", "warnings",
    ]  # fmt: skip
    parsed = json.loads(scores.to_json())
    assert len(parsed.pop("cmc")) == 50
    assert parsed == plain
    assert (plain["protocol"]["name"], plain["protocol"]["junk_pids"]) == ("market1501", [-1])
    assert plain["r_precision"] == scores.r_precision()
    assert evaluate(*people()[0], protocol="single_gallery_shot").to_dict()["r_precision"] is None
    short = evaluate(*people()[0], max_rank=3)
    assert "rank5" not in short.to_dict()
    assert json.loads(short.to_json())["cmc"] == short.cmc.tolist()


def test_text(scores) -> None:
    table = scores.table()
    assert f"mAP      {100 * scores.mAP:.2f} %" in table
    assert "120 queries against 600 gallery crops, 0 queries skipped; protocol market1501" in table
    header, rule, row = scores.markdown_row("colour", header=True).splitlines()
    assert header == "| model | mAP | Rank-1 | Rank-5 | Rank-10 | mINP | protocol |"
    assert header.count("|") == rule.count("|") == row.count("|")
    assert scores.markdown_row("colour") == row
    assert row.startswith(f"| colour | {100 * scores.mAP:.1f} | {100 * scores.rank(1):.1f} |")


def test_groups_are_the_scores_of_their_queries_alone(scores) -> None:
    arrays, _ = people()
    for group in scores.by("camera").groups:
        chosen = arrays[4] == int(group.name)
        alone = evaluate(*(part[chosen] if number % 2 == 0 else part for number, part in enumerate(arrays)))
        assert (group.num_query, group.num_valid_query) == (chosen.sum(), alone.num_valid_query)
        assert (group.mAP, group.rank1, group.mINP) == pytest.approx((alone.mAP, alone.rank(1), alone.mINP))
        interval = alone.intervals()["mAP"]
        assert (group.mAP_low, group.mAP_high) == pytest.approx((interval.low, interval.high))


def test_columns_of_words_and_of_many_numbers(scores) -> None:
    assert [group.name for group in scores.by("place").groups] == ["asia", "europe"]
    bins = scores.by("width", num_bins=3).groups
    assert [group.num_query for group in bins] == pytest.approx([40, 40, 40], abs=3)
    assert bins[0].name.startswith("2")
    edges = [[int(edge) for edge in group.name.split("–")] for group in bins]
    assert all(low[1] < high[0] for low, high in itertools.pairwise(edges))
    assert sum(group.num_query for group in scores.by("num_positives").groups) == 120
    lines = scores.by("place").table().splitlines()
    assert lines[0] == "place   queries    mAP   from     to  Rank-1   mINP"
    asia = scores.by("place").groups[0]
    assert lines[1].split()[2:5] == [f"{100 * value:.1f}" for value in (asia.mAP, asia.mAP_low, asia.mAP_high)]
    assert [line.split()[0] for line in lines[1:]] == ["asia", "europe"]


def test_groups_without_a_positive_are_none_in_json() -> None:
    (query, gallery, query_pids, *others), _ = people()
    absent = np.where(np.arange(120) < 60, query_pids, 99)
    scores = evaluate(query, gallery, absent, *others, query_columns={"absent": absent == 99})
    empty = scores.by("absent").to_dict()["True"]
    assert empty == {
        "name": "True",
        "num_query": 60,
        "num_valid_query": 0,
        "mAP": None,
        "mAP_low": None,
        "mAP_high": None,
        "rank1": None,
        "mINP": None,
    }


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("height", None, "the queries have no column 'height'; there is camera, num_positives, width, place"),
        ("names", np.array([f"crop {number}" for number in range(120)]), "120 different values make too many groups"),
        ("broken", np.full(120, np.nan), "NaN or infinite values cannot be put into bins"),
        ("mixed", np.array([1, "a"] * 60, object), "values of type object cannot be put into groups"),
    ],
)
def test_columns_that_make_no_groups(column: str, values: np.ndarray | None, message: str) -> None:
    arrays, columns = people()
    scores = evaluate(*arrays, query_columns=columns if values is None else columns | {column: values})
    with pytest.raises(EvaluationError, match=message):
        scores.by(column)


def test_intervals_hold_the_value_and_follow_the_seed(scores) -> None:
    intervals = scores.intervals()
    assert list(intervals) == ["mAP", "rank1", "rank5", "rank10", "mINP"]
    assert intervals["mAP"].value == scores.mAP
    assert all(one.low <= one.value <= one.high for one in intervals.values())
    assert scores.intervals() == intervals
    assert scores.intervals(seed=1) != intervals
    narrow = scores.intervals(level=0.5)["mAP"]
    assert intervals["mAP"].low < narrow.low < narrow.high < intervals["mAP"].high
    for options in ({"level": 95}, {"num_samples": 0}):
        with pytest.raises(EvaluationError, match="samples are none"):
            scores.intervals(**options)


def test_intervals_draw_people_not_queries() -> None:
    """Every query ten times over adds no person: the interval must not shrink."""
    (query, gallery, query_pids, gallery_pids, query_camids, gallery_camids), _ = people()
    few = evaluate(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids)
    many = evaluate(
        np.tile(query, (10, 1)),
        gallery,
        np.tile(query_pids, 10),
        gallery_pids,
        np.tile(query_camids, 10),
        gallery_camids,
    )
    one, ten = few.intervals()["mAP"], many.intervals()["mAP"]
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))


def test_intervals_cover_what_they_promise() -> None:
    """Of 95 % intervals for a mean that is known, about 95 in 100 hold it."""
    rng = np.random.default_rng(0)
    arrays, _ = people()
    scores, held = evaluate(*arrays), 0
    people_of = arrays[2]
    for seed in range(200):
        values = 0.5 + 0.1 * rng.normal(size=30)[people_of] + 0.05 * rng.normal(size=120)
        drawn = replace(scores, average_precision=values).intervals(num_samples=200, seed=seed)["mAP"]
        held += drawn.low <= 0.5 <= drawn.high
    assert 0.87 <= held / 200 <= 0.99


def test_every_camera_is_a_group_however_many_there_are() -> None:
    (query, gallery, query_pids, gallery_pids, _, gallery_camids), _ = people()
    scores = evaluate(query, gallery, query_pids, gallery_pids, 100 + np.arange(120), gallery_camids)
    assert [group.name for group in scores.by("camera").groups] == [str(camid) for camid in range(100, 220)]


def test_a_column_does_not_hide_the_cameras(scores) -> None:
    arrays, _ = people()
    named = evaluate(*arrays, query_columns={"camera": np.full(120, "door")})
    assert named.by("camera") == scores.by("camera")


def test_one_person_has_no_interval_and_json_says_null(scores) -> None:
    (query, gallery, query_pids, *others), _ = people()
    alone = evaluate(query, gallery, np.where(query_pids == query_pids[0], query_pids, 99), *others)
    assert alone.num_valid_query > 1
    assert all(np.isnan([one.low, one.high]).all() for one in alone.intervals().values())
    found = compare(alone, alone)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["differences"]["mAP"]["low"] is None
    assert found.table().splitlines()[1].split() == ["mAP", "+0.00", "–"]


def test_comparison_is_paired() -> None:
    arrays, _ = people()
    better, _ = people(noise=0.95)
    first, second = evaluate(*arrays), evaluate(*better)
    found = compare(first, second)
    gain = found.differences["mAP"]
    assert gain.value == pytest.approx(second.mAP - first.mAP)
    assert gain.low < gain.value < gain.high
    alone = [one.intervals()["mAP"] for one in (first, second)]
    assert gain.high - gain.low < min(one.high - one.low for one in alone)
    assert found.num_better + found.num_worse + found.num_equal == 120
    assert compare(second, first).differences["mAP"].value == pytest.approx(-gain.value)
    assert f"{found.num_better} queries are better" in found.table()
    assert json.loads(json.dumps(found.to_dict()))["differences"]["mAP"]["value"] == gain.value
    same = compare(first, first).differences["mAP"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_only_what_is_alike_is_compared() -> None:
    arrays, _ = people()
    scores = evaluate(*arrays)
    with pytest.raises(EvaluationError, match="by protocol 'market1501' and 'cross_camera' cannot be compared"):
        compare(scores, evaluate(*arrays, protocol="cross_camera"))
    others, _ = people(seed=1)
    with pytest.raises(EvaluationError, match="the two models have other query_pids"):
        compare(scores, evaluate(*others))
    with pytest.raises(EvaluationError, match="scores with tie 'worst' and 'best' cannot be compared"):
        compare(scores, evaluate(*arrays, tie="best"))
    changed = replace(PROTOCOLS["market1501"], mean="all")
    with pytest.raises(EvaluationError, match="'market1501' and \"market1501 with mean 'all'\" cannot be compared"):
        compare(scores, evaluate(*arrays, protocol=changed))


def test_models_with_other_right_crops_are_not_compared() -> None:
    arrays, _ = people()
    features, pids, camids = (np.concatenate(arrays[number : number + 2]) for number in (0, 2, 4))
    rest = features, features, pids, pids, camids, camids
    itself, other = np.arange(len(pids)), np.full(len(pids), -1)
    first = evaluate(*rest, protocol="all_cameras", query_in_gallery=itself)
    with pytest.raises(EvaluationError, match="have other query_in_gallery"):
        compare(first, evaluate(*rest, protocol="all_cameras", query_in_gallery=other))
    places = [np.array(["asia", "europe"])[(camids + shift) % 2] for shift in (0, 1)]
    scores = [
        evaluate(
            *rest,
            protocol="leave_one_continent_out",
            query_columns={"continent": place},
            gallery_columns={"continent": place},
        )
        for place in places
    ]
    with pytest.raises(EvaluationError, match=r"have other query_columns\['continent'\]"):
        compare(*scores)


def test_models_are_compared_at_the_ranks_that_both_have(scores) -> None:
    arrays, _ = people()
    short = evaluate(*arrays, max_rank=3)
    for pair in ((scores, short), (short, scores)):
        assert list(compare(*pair).differences) == ["mAP", "rank1", "mINP"]


def test_ranks_of_single_shot_galleries_are_no_ranks() -> None:
    scores = evaluate(*people()[0], protocol="single_gallery_shot")
    for call in (scores.r_precision, lambda: scores.mAP_at(5)):
        with pytest.raises(EvaluationError, match="protocol 'single_gallery_shot' draws one of them"):
            call()
    assert scores.intervals()["rank1"].value == pytest.approx(scores.rank(1))
    with pytest.raises(EvaluationError, match="not at least at 1"):
        scores.mAP_at(0)


def test_protocols_refuse_what_makes_no_sense() -> None:
    for options, message in (
        ({"ap": "linear"}, "protocol ap 'linear' is not one of step, trapezoid"),
        ({"within": "city"}, "protocol within 'city' is not one of everything, camera, continent"),
        ({"repeats": -1}, "repeats -1 is not at least 0"),
        ({"single_shot": True, "ap": "trapezoid"}, "its AP is the step AP"),
    ):
        with pytest.raises(EvaluationError, match=message):
            Protocol("mine", **options)
    assert [name for name, protocol in PROTOCOLS.items() if name != protocol.name or not protocol.source] == []


def test_changed_protocols_say_what_they_changed(scores) -> None:
    changed = replace(PROTOCOLS["market1501"], junk_pids=(-1, 0), source="mine")
    found = evaluate(*people()[0], protocol=changed)
    assert found.summary().endswith("; protocol market1501 with junk_pids (-1, 0)")
    assert found.markdown_row("mine").endswith("| market1501 with junk_pids (-1, 0) |")
    assert found.to_dict()["protocol"]["junk_pids"] == [-1, 0]
    assert replace(changed, name="mine").title == "mine"
    assert [protocol.title for protocol in PROTOCOLS.values()] == list(PROTOCOLS)


def test_blocks_and_labels_are_public() -> None:
    import entire_id

    arrays, _ = people()
    labels = Labels.of(*arrays[2:])
    found = entire_id.evaluate_blocks(score_blocks(*arrays[:2]), labels)
    assert found.mAP == evaluate(*arrays).mAP
