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
from entire_id.evaluation.verification import _num_allowed, evaluate_open_set, evaluate_roc

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
        if labels.query_pids[query] != -1  # a query of nobody is skipped
        for crop in range(scores.shape[1])
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
    assert len(roc.negative_scores) == int(0.01 * len(negatives) + 1e-6) + 1
    np.testing.assert_array_equal(roc.negative_scores, negatives[: len(roc.negative_scores)])
    for fpr in (1e-5, 1e-3, 1e-2):
        expected = (scores[same] > negatives[int(fpr * len(negatives) + 1e-6)]).mean()
        assert roc.tpr(fpr) == pytest.approx(expected)
    for bad in (0.02, -1):
        with pytest.raises(EvaluationError, match="not in 0..0.01; give it in fprs"):
            roc.tpr(bad)
    with pytest.raises(EvaluationError, match=r"not all in \(0, 1\]"):
        evaluate_roc(blocks_of(scores), labels, fprs=[0])


@given(st.integers(1, 10**12), st.floats(0, 1))
def test_share_that_is_allowed_is_used_up(number: int, rate: float) -> None:
    for share in (rate, int(rate * number) / number):
        allowed = _num_allowed(share, number)
        assert allowed / number <= share < (allowed + 1) / number
    assert _num_allowed(int(rate * number) / number, number) == int(rate * number)


def test_rates_that_are_no_binary_fractions_are_exact() -> None:
    scores = np.arange(101, dtype=np.float32)[None]
    labels = Labels.of([1], [2] * 100 + [1], [0], [1] * 101)
    roc = evaluate_roc([(0, scores)], labels, fprs=[0.29])
    assert (len(roc.negative_scores), roc.threshold(0.29)) == (30, 70)


@pytest.mark.parametrize("protocol", ["single_gallery_shot", "multi_query"])
def test_protocols_that_draw_or_pool_have_no_threshold(protocol: str) -> None:
    labels = Labels.of([1, 2], [1, 3], [0, 0], [1, 1])
    for evaluated in (evaluate_roc, evaluate_open_set):
        with pytest.raises(EvaluationError, match=f"no scores with a threshold by protocol '{protocol}'"):
            evaluated([(0, np.zeros((2, 2)))], labels, protocol)


def test_tensors_with_a_gradient_give_the_same() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    scores = rng.integers(-20, 20, (9, 60)).astype(np.float32)
    labels = Labels.of(np.arange(9), rng.integers(0, 6, 60), rng.integers(0, 2, 9), rng.integers(0, 2, 60))

    def tensors():
        return ((start, torch.tensor(block, requires_grad=True)) for start, block in blocks_of(scores))

    expected, found = (evaluate_roc(blocks, labels, fprs=[0.3]) for blocks in (blocks_of(scores), tensors()))
    np.testing.assert_array_equal(found.positive_scores, expected.positive_scores)
    np.testing.assert_array_equal(found.negative_scores, expected.negative_scores)
    opened = [evaluate_open_set(blocks, labels) for blocks in (blocks_of(scores), tensors())]
    assert opened[0].detection_rate(0.3) == opened[1].detection_rate(0.3)
    pairs = [evaluate_camera_pairs(blocks, labels) for blocks in (blocks_of(scores), tensors())]
    np.testing.assert_array_equal(pairs[0].mAP, pairs[1].mAP)


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
    with pytest.raises(EvaluationError, match="rank 0 is not at least 1"):
        evaluate_open_set(blocks_of(scores), labels, rank=0)


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
