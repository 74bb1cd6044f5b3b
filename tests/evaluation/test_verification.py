from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entire_id.errors import EvaluationError
from entire_id.evaluation.camera_pairs import evaluate_camera_pairs
from entire_id.evaluation.labels import Labels
from entire_id.evaluation.protocols import PROTOCOLS
from entire_id.evaluation.ranking import evaluate_blocks
from entire_id.evaluation.verification import evaluate_open_set, evaluate_roc

from brute_force import ranking, ranks_of, sees

MARKET = PROTOCOLS["market1501"]


@st.composite
def cases(draw: st.DrawFn):
    num_query, num_gallery = draw(st.integers(1, 9)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    high = draw(st.integers(1, 6))
    pids, camids = (
        [rng.integers(low, top, size) for size in (num_query, num_gallery)] for low, top in ((-1, high), (0, 3))
    )
    scores = rng.integers(-20, 20, (num_query, num_gallery)).astype(np.float32) / 20
    return scores, Labels.of(*pids, *camids)


def blocks_of(scores, size: int = 2):
    return ((start, scores[start : start + size].copy()) for start in range(0, len(scores), size))


@given(cases(), st.sampled_from([0.01, 0.1, 0.5, 1.0]), st.floats(0, 1))
@settings(max_examples=200)
def test_roc_counts_every_pair(case, max_fpr: float, share: float) -> None:
    scores, labels = case
    pairs = [
        (sees(labels, query, crop, MARKET), scores[query, crop])
        for query in range(len(scores))
        if labels.query_pids[query] != -1
        for crop in range(scores.shape[1])
    ]
    # A query of nobody has negatives alone.
    pairs += [
        (False, scores[query, crop])
        for query in np.flatnonzero(labels.query_pids == -1)
        for crop in np.flatnonzero(labels.gallery_pids != -1)
    ]
    positives = np.array([score for right, score in pairs if right])
    negatives = np.array([score for right, score in pairs if right is False])
    if not len(positives) or not len(negatives):
        with pytest.raises(EvaluationError, match="both are needed"):
            evaluate_roc(blocks_of(scores), labels, fprs=[max_fpr])
        return
    roc = evaluate_roc(blocks_of(scores), labels, fprs=[max_fpr])
    assert (roc.num_positive_pairs, roc.num_negative_pairs) == (len(positives), len(negatives))
    fpr = share * max_fpr
    threshold = roc.threshold(fpr)
    assert (negatives > threshold).mean() <= fpr
    lower = negatives[negatives <= threshold]
    if len(lower) and threshold > -np.inf:  # the next lower threshold would let too many pass
        assert (negatives >= lower.max()).mean() > fpr
    assert roc.tpr(fpr) == pytest.approx((positives > threshold).mean())
    rates, found = roc.curve(20)
    assert len(rates) == len(found) == 20
    assert (np.diff(found) >= 0).all()


def test_roc_of_many_pairs_holds_the_highest_only() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 2000)).astype(np.float32)
    labels = Labels.of(np.arange(300) % 50, np.arange(2000) % 50, np.zeros(300, int), np.ones(2000, int))
    scores += labels.query_pids[:, None] == labels.gallery_pids
    roc = evaluate_roc(blocks_of(scores, 7), labels, fprs=[1e-3, 1e-2])
    same = labels.query_pids[:, None] == labels.gallery_pids
    negatives = np.sort(scores[~same])[::-1]
    assert len(roc.negative_scores) == int(0.01 * len(negatives)) + 1
    np.testing.assert_array_equal(roc.negative_scores, negatives[: len(roc.negative_scores)])
    for fpr in (1e-5, 1e-3, 1e-2):
        expected = (scores[same] > negatives[int(fpr * len(negatives))]).mean()
        assert roc.tpr(fpr) == pytest.approx(expected)
    for bad in (0.02, -1):
        with pytest.raises(EvaluationError, match="not in 0..0.01; give it in fprs"):
            roc.tpr(bad)
    with pytest.raises(EvaluationError, match=r"not all in \(0, 1\]"):
        evaluate_roc(blocks_of(scores), labels, fprs=[0])


@given(cases(), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(1, 3), st.sampled_from(["worst", "best"]))
@settings(max_examples=200)
def test_open_set_counts_every_query(case, rate: float, rank: int, tie: str) -> None:
    scores, labels = case
    known, strangers = [], []
    for query, pid in enumerate(labels.query_pids.tolist()):
        if pid == -1:
            continue
        if pid not in labels.gallery_pids:
            kept = [scores[query, crop] for crop in np.flatnonzero(labels.gallery_pids != -1)]
            strangers.append(max(kept, default=-np.inf))
        elif ranks := ranks_of(scores, labels, query, MARKET, tie):
            best = max(scores[query, crop] for crop in range(scores.shape[1]) if sees(labels, query, crop, MARKET))
            known.append((ranks[0], best))
            assert ranking(scores, labels, query, MARKET, tie)[ranks[0] - 1][0]
    if not known or not strangers:
        with pytest.raises(EvaluationError, match="an open set needs both"):
            evaluate_open_set(blocks_of(scores), labels, rank=rank, tie=tie)
        return
    found = evaluate_open_set(blocks_of(scores), labels, rank=rank, tie=tie)
    assert (found.num_known, found.num_strangers) == (len(known), len(strangers))
    threshold = found.threshold(rate)
    assert np.mean([score > threshold for score in strangers]) <= rate
    expected = np.mean([first <= rank and score > threshold for first, score in known])
    assert found.detection_rate(rate) == pytest.approx(expected)
    with pytest.raises(EvaluationError, match=r"a false alarm rate of 2 is not in 0..1"):
        found.detection_rate(2)


@given(cases())
@settings(max_examples=100)
def test_camera_pairs_search_one_camera(case) -> None:
    scores, labels = case
    pairs = evaluate_camera_pairs(blocks_of(scores), labels)
    assert pairs.query_camids.tolist() == sorted(set(labels.query_camids.tolist()))
    for a, camid in enumerate(pairs.query_camids):
        for b, other in enumerate(pairs.gallery_camids):
            queries, crops = labels.query_camids == camid, labels.gallery_camids == other
            part = Labels.of(
                labels.query_pids[queries],
                labels.gallery_pids[crops],
                labels.query_camids[queries],
                labels.gallery_camids[crops],
            )
            try:
                alone = evaluate_blocks([(0, scores[queries][:, crops])], part)
            except EvaluationError:
                assert pairs.num_valid_query[a, b] == 0
                assert np.isnan(pairs.mAP[a, b])
                continue
            assert pairs.num_valid_query[a, b] == alone.num_valid_query
            assert pairs.mAP[a, b] == pytest.approx(alone.mAP)
            assert pairs.rank1[a, b] == pytest.approx(alone.rank(1))
            assert pairs.to_dict()[f"{camid}→{other}"]["mAP"] == pairs.mAP[a, b]
    assert len(pairs.table().splitlines()) == 1 + len(pairs.query_camids)


def test_camera_pairs_need_cameras_and_know_the_query_itself() -> None:
    scores = np.array([[1.0, 0.5, 0.4]])
    with pytest.raises(EvaluationError, match="no scores by camera pair without cameras"):
        evaluate_camera_pairs([(0, scores)], Labels.of([1], [1, 1, 2]))
    labels = Labels.of([1], [1, 1, 2], [0], [0, 1, 1], query_in_gallery=[0])
    pairs = evaluate_camera_pairs([(0, scores)], labels, "all_cameras")
    assert pairs.num_valid_query.tolist() == [[0, 1]]
