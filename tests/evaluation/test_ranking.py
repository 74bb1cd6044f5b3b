from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entire_id.errors import EvaluationError
from entire_id.evaluation import ranking
from entire_id.evaluation.ranking import Scores, evaluate


def brute_force(scores, query_pids, gallery_pids, query_camids, gallery_camids):
    """AP, INP and first rank of every query, NaN where it has no positive: the rule, word for word."""
    results = []
    for row, pid, camid in zip(scores, query_pids, query_camids, strict=True):
        kept = [
            (-score, pid == other, index)
            for index, (score, other, camera) in enumerate(zip(row, gallery_pids, gallery_camids, strict=True))
            if other != -1 and not (pid == other and camid == camera)
        ]
        hits = [right and pid != -1 for _, right, _ in sorted(kept)]  # False sorts first: ties count against the model
        ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
        precisions = [number / rank for number, rank in enumerate(ranks, 1)]
        results.append((np.mean(precisions), len(ranks) / ranks[-1], ranks[0]) if ranks else (np.nan, np.nan, np.nan))
    return np.array(results)


# The 24 vertices of the 24-cell: all of length 1, and every product of two is a multiple of 1/2. So scores are exact in
# float32, whatever the order in which they are added up, and ties are common and true.
VERTICES = np.concatenate([np.eye(4), -np.eye(4), np.array(list(itertools.product((-0.5, 0.5), repeat=4)))])


@st.composite
def cases(draw: st.DrawFn):
    """Features with many ties; few people and cameras, so that every rule is met."""
    num_query, num_gallery = draw(st.integers(1, 8)), draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    features = VERTICES[rng.integers(0, len(VERTICES), num_query + num_gallery)]
    pids = rng.integers(-1, draw(st.integers(0, 4)) + 1, num_query + num_gallery)
    camids = rng.integers(0, draw(st.integers(1, 3)), num_query + num_gallery)
    return tuple(part for values in (features, pids, camids) for part in (values[:num_query], values[num_query:]))


@given(cases())
@settings(max_examples=500)
def test_equals_brute_force(case) -> None:
    query, gallery, *labels = case
    scores = query @ gallery.T
    expected = brute_force(scores, labels[0], labels[1], labels[2], labels[3])
    valid = ~np.isnan(expected[:, 0])
    if not valid.any():
        with pytest.raises(EvaluationError):
            evaluate(query, gallery, *labels)
        return
    found = evaluate(query, gallery, *labels, max_rank=30)
    np.testing.assert_allclose(found.average_precision, expected[:, 0], atol=1e-12)
    assert found.mAP == pytest.approx(expected[valid, 0].mean(), abs=1e-12)
    assert found.mINP == pytest.approx(expected[valid, 1].mean(), abs=1e-12)
    assert found.num_valid_query == valid.sum()
    for k in (1, 5, 30):
        assert found.rank(k) == pytest.approx((expected[valid, 2] <= k).mean(), abs=1e-12)


def arrays(num_query: int = 30, num_gallery: int = 200, seed: int = 0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_query + num_gallery, 8)).astype(np.float32)
    pids, camids = rng.integers(0, 20, num_query + num_gallery), rng.integers(0, 4, num_query + num_gallery)
    return tuple(part for values in (features, pids, camids) for part in (values[:num_query], values[num_query:]))


def test_a_known_case() -> None:
    """Gallery by similarity: wrong, right, right's own camera (ignored), right → ranks 2 and 3."""
    gallery = np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]])
    scores = evaluate(
        np.array([[1.0, 0.0]]), gallery, np.array([7]), np.array([8, 7, 7, 7]), np.array([0]), np.array([0, 1, 0, 2])
    )
    assert scores.mAP == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.mINP == pytest.approx(2 / 3)
    assert scores.cmc[:3].tolist() == [0, 1, 1]


def test_result_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(*arrays(num_query=300))
    monkeypatch.setattr(ranking, "_BLOCK_BYTES", 1)
    blocks = evaluate(*arrays(num_query=300))
    np.testing.assert_array_equal(whole.average_precision, blocks.average_precision)
    np.testing.assert_array_equal(whole.cmc, blocks.cmc)


def test_collapsed_model_scores_as_badly_as_it_can() -> None:
    query, gallery, *labels = arrays()
    scores = evaluate(np.ones_like(query), np.ones_like(gallery), *labels)
    assert scores.mAP < 0.1
    assert scores.rank(1) == 0


def test_small_gallery_does_not_shorten_the_curve() -> None:
    features = np.eye(3)
    scores = evaluate(features, features, np.arange(3), np.arange(3), np.zeros(3, int), np.ones(3, int))
    assert scores.cmc.shape == (50,)
    assert scores.rank(10) == 1
    with pytest.raises(EvaluationError, match="rank 51 is not in"):
        scores.rank(51)


def test_pid_zero_and_camera_zero_are_ordinary() -> None:
    features = np.eye(2)
    scores = evaluate(features, features, np.array([0, 1]), np.array([0, 1]), np.array([0, 0]), np.array([1, 1]))
    assert (scores.mAP, scores.num_valid_query) == (1, 2)


def test_skipped_queries_are_counted() -> None:
    features = np.eye(3)
    pids, camids = np.array([5, 6, -1]), np.array([0, 0, 0])
    scores = evaluate(features, features, pids, np.array([5, 6, -1]), camids, np.array([1, 0, 1]))
    assert (scores.num_query, scores.num_valid_query) == (3, 1)
    assert np.isnan(scores.average_precision[1:]).all()


@pytest.mark.parametrize(
    ("pids", "camids", "message"),
    [
        ([1, 2], [0, 1], "no query identity is in the gallery: query pids are 7..8, gallery pids 1..2"),
        ([7, 8], [0, 0], "every crop has camera 0.*c021 is camera 21"),
        (
            [7, 8],
            [0, 1],
            "the 2 query identities .* were all seen there by the query's own camera",
        ),
    ],
)
def test_no_valid_query_says_why(pids: list[int], camids: list[int], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(np.eye(2), np.eye(2), np.array([7, 8]), np.array(pids), np.array(camids), np.array(camids))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (
            0,
            np.full((30, 8), np.nan, np.float32),
            "30 query_features are NaN, .* the first is row 0",
        ),
        (1, np.zeros((200, 8), np.float32), "200 gallery_features"),
        (0, np.ones((30, 7), np.float32), "query features have 7 columns, gallery features 8"),
        (0, np.ones((30, 8), np.int64), "expected float"),
        (0, np.empty((0, 8), np.float32), "expected float"),
        (2, np.zeros(29, np.int64), r"query_pids are int64 \(29,\); expected integers \(30,\)"),
        (5, np.zeros(200), "gallery_camids are float64"),
    ],
)
def test_bad_arrays_are_named(position: int, value: np.ndarray, message: str) -> None:
    values = list(arrays())
    values[position] = value
    with pytest.raises(EvaluationError, match=message):
        evaluate(*values)


def test_inputs_are_not_changed() -> None:
    values = arrays()
    copies = [value.copy() for value in values]
    evaluate(*values)
    for value, copy in zip(values, copies, strict=True):
        np.testing.assert_array_equal(value, copy)


def test_scores_as_plain_numbers() -> None:
    scores = evaluate(*arrays())
    assert isinstance(scores, Scores)
    assert set(scores.to_dict()) == {
        "mAP", "rank1", "rank5", "rank10", "mINP", "num_query", "num_valid_query", "num_gallery"
    }  # fmt: skip


@pytest.mark.parametrize("columns", [1, 3, 64, 257, 768, 2048])
@pytest.mark.parametrize("num_query", [1, 2, 5, 63, 65])
@pytest.mark.parametrize("num_gallery", [1, 2, 7, 64, 203, 1000])
def test_ties_stay_ties_whatever_the_shape(columns: int, num_query: int, num_gallery: int) -> None:
    """Products treat the rows at an odd end by another routine, in which equal gallery rows scored differently."""
    rng = np.random.default_rng(columns)
    query = rng.normal(size=(num_query, columns)).astype(np.float32)
    gallery = np.tile(rng.normal(size=columns).astype(np.float32), (num_gallery, 1))
    pids = np.array([8] * (num_gallery - 1) + [7])
    labels = np.full(num_query, 7), pids, np.zeros(num_query, int), np.ones(num_gallery, int)
    scores = evaluate(query, gallery, *labels)
    assert set(scores.average_precision) == {1 / num_gallery}


def test_progress_is_told() -> None:
    told = []
    evaluate(*arrays(), progress=lambda stage, done, total: told.append((stage, done, total)))
    assert told[-1] == ("evaluating", 30, 30)
