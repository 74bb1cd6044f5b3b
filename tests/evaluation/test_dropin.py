from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from entire_id.errors import EvaluationError
from entire_id.evaluation.dropin import FeatureAccumulator, compute_metrics, evaluate_rank
from entire_id.evaluation.ranking import evaluate


def classic(distmat, q_pids, g_pids, q_camids, g_camids, max_rank):
    """What torchreid's function returns where it is right: no ties, no junk, a gallery of more than max_rank."""
    curves, precisions = [], []
    for distances, pid, camid in zip(distmat, q_pids, q_camids, strict=True):
        order = np.argsort(distances)
        order = order[(g_pids[order] != pid) | (g_camids[order] != camid)]
        hits = g_pids[order] == pid
        if hits.any():
            curves.append(np.minimum(np.cumsum(hits), 1)[:max_rank])
            precisions.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return np.mean(curves, axis=0), np.mean(precisions)


def arrays(num_query: int = 40, num_gallery: int = 300, seed: int = 0):
    rng = np.random.default_rng(seed)
    pids, camids = ([rng.integers(0, top, size) for size in (num_query, num_gallery)] for top in (12, 4))
    return rng.random((num_query, num_gallery)), *pids, *camids


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_distance_matrices_give_the_known_numbers(dtype: type) -> None:
    distmat, *labels = arrays()
    distmat = distmat.astype(dtype)
    before = distmat.copy()
    cmc, mean = evaluate_rank(distmat, *labels, max_rank=20)
    expected_cmc, expected_mean = classic(distmat, *labels, 20)
    np.testing.assert_allclose(cmc, expected_cmc, atol=1e-12)
    assert mean == pytest.approx(expected_mean, abs=1e-12)
    np.testing.assert_array_equal(distmat, before)


def test_distances_that_float32_cannot_tell_apart_are_told_apart() -> None:
    distmat = np.array([[1.0, 1.0 + 1e-12]])
    assert evaluate_rank(distmat, [7], [7, 8], [0], [1, 1])[1] == 1


def test_small_galleries_are_no_trouble() -> None:
    distmat, *labels = arrays(num_gallery=30)
    cmc, _ = evaluate_rank(distmat, *labels)
    assert len(cmc) == 50
    assert cmc[-1] == 1
    with pytest.raises(EvaluationError, match="distmat has shape"):
        evaluate_rank(distmat[0], *labels)
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        evaluate_rank(distmat * np.nan, *labels)


def batches(size: int = 7, num_rows: int = 100):
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(num_rows, 8)), rng.integers(0, 6, num_rows), rng.integers(0, 3, num_rows)
    parts = [tuple(column[start : start + size] for column in columns) for start in range(0, num_rows, size)]
    features, pids, camids = columns
    expected = evaluate(features[:20], features[20:], pids[:20], pids[20:], camids[:20], camids[20:])
    return parts, expected


def test_accumulator_scores_what_it_was_given() -> None:
    parts, expected = batches()
    accumulator = FeatureAccumulator(20)
    with pytest.raises(EvaluationError, match="no batch was given"):
        accumulator.compute()
    for _ in range(2):
        for features, pids, camids in parts:
            accumulator.update((features, pids.tolist(), tuple(camids)))
        assert accumulator.compute().mAP == expected.mAP
        accumulator.reset()


def test_accumulator_takes_tensors() -> None:
    torch = pytest.importorskip("torch")
    parts, expected = batches()
    accumulator = FeatureAccumulator(20)
    for batch in parts:
        accumulator.update(tuple(torch.from_numpy(values) for values in batch))
    assert accumulator.compute().mAP == expected.mAP


def test_shares_of_several_processes_are_merged() -> None:
    """As a distributed sampler deals them: interleaved, with the first rows again at the end of the last share."""
    parts, expected = batches(size=1)
    shares = []
    for process in range(3):
        rows = [*range(process, 100, 3), *([0, 1] if process else [])]
        share = FeatureAccumulator(20)
        for row in rows:
            share.update(parts[row], rows=[row])
        shares.append(pickle.loads(pickle.dumps(share)))
    whole = FeatureAccumulator(20)
    for share in shares:
        whole.merge(share)
    assert whole.compute().mAP == expected.mAP
    with pytest.raises(EvaluationError, match="expected every row of .* Merge the accumulators of all processes"):
        shares[1].compute()


def test_a_share_that_is_missing_at_the_end_is_noticed() -> None:
    parts, expected = batches(size=50)
    first, second = FeatureAccumulator(20, num_rows=100), FeatureAccumulator(20)
    first.update(parts[0], rows=range(50))
    second.update(parts[1], rows=range(50, 100))
    with pytest.raises(EvaluationError, match=r"50 different rows were given, from row 0 to row 49; expected every"):
        first.compute()
    first.merge(second)
    assert first.compute().mAP == expected.mAP
    alone = FeatureAccumulator(20, num_rows=100)
    alone.update(parts[0])
    with pytest.raises(EvaluationError, match="expected every row of 100"):
        alone.compute()


def test_empty_accumulators_change_nothing() -> None:
    parts, expected = batches(size=100)
    accumulator = FeatureAccumulator(20)
    accumulator.merge(FeatureAccumulator(20))
    accumulator.update(parts[0])
    accumulator.merge(FeatureAccumulator(20))
    assert accumulator.compute().mAP == expected.mAP


def test_accumulator_says_what_it_misses() -> None:
    parts, _ = batches()
    accumulator = FeatureAccumulator(20)
    accumulator.update(parts[0])
    with pytest.raises(EvaluationError, match="give them always, or never"):
        accumulator.update(parts[1], rows=range(7))
    with pytest.raises(EvaluationError, match="7 features, 7 pids, 6 camids and 7 rows"):
        accumulator.update((*parts[1][:2], parts[1][2][:6]))
    with pytest.raises(EvaluationError, match="only if update was given the rows"):
        FeatureAccumulator(20).merge(accumulator)


def test_trainer_gets_a_dict_of_numbers() -> None:
    parts, expected = batches(size=100)
    features, pids, camids = parts[0]
    metrics = compute_metrics(pids, camids, num_query=20)
    for predictions in (features, (features, np.zeros(3))):
        found = metrics(SimpleNamespace(predictions=predictions, label_ids=None))
        assert found == {name: expected.to_dict()[name] for name in ("mAP", "rank1", "rank5", "rank10", "mINP")}
