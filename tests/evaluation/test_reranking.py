from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from entire_id.errors import EvaluationError
from entire_id.evaluation import features as features_module
from entire_id.evaluation import reranking
from entire_id.evaluation.ranking import evaluate, evaluate_blocks
from entire_id.evaluation.reranking import PRESETS, RerankConfig, expand_queries, rerank

from dense_rerank import dense_rerank

# The vertices of the 24-cell: all of length 1, and every product of two is a multiple of 1/2. So distances are exact in
# float32, and ties are common and true.
VERTICES = np.concatenate([np.eye(4), -np.eye(4), np.array(list(itertools.product((-0.5, 0.5), repeat=4)))])


def random_features(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.normal(size=(num, 16))


def people(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.normal(size=(num // 8 + 1, 16))[rng.integers(0, num // 8 + 1, num)] + 0.3 * rng.normal(size=(num, 16))


def tied(rng: np.random.Generator, num: int) -> np.ndarray:
    return VERTICES[rng.integers(0, 24, num)]


def duplicated(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.normal(size=(num // 5 + 1, 32))[rng.integers(0, num // 5 + 1, num)]


def identical(rng: np.random.Generator, num: int) -> np.ndarray:
    return np.ones((num, 3))


def distances(query: np.ndarray, gallery: np.ndarray, config: RerankConfig) -> np.ndarray:
    """All distances at once, from the blocks; every block must be where it says it is."""
    blocks, first = [], 0
    for start, block in rerank(query, gallery, config):
        assert (start, block.dtype, block.shape[1]) == (first, np.float32, len(gallery))
        blocks.append(block)
        first += len(block)
    assert first == len(query)
    return -np.concatenate(blocks)


def mean_ap(scores: np.ndarray, query_pids: np.ndarray, gallery_pids: np.ndarray) -> float:
    precisions = []
    for row, pid in zip(scores, query_pids, strict=True):
        ranks = np.flatnonzero((gallery_pids == pid)[np.argsort(-row, kind="stable")]) + 1
        precisions.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    return float(np.mean(precisions))


@pytest.mark.parametrize("draw", [random_features, people, tied, duplicated, identical])
@pytest.mark.parametrize("preset", PRESETS)
def test_equals_the_dense_original(preset: str, draw) -> None:
    """The tiny, those with k1 or k2 beyond all rows, and odd k1, whose halves are rounded, are among them."""
    rng, errors = np.random.default_rng(7), []
    for num_query, num_gallery, k1, k2, share in (
        (1, 1, 1, 1, 0.3),
        (1, 2, 20, 6, 0.3),
        (3, 40, 60, 70, 0.3),
        (2, 60, 5, 30, 0.5),
        (12, 90, 7, 3, 0.0),
        (5, 80, 11, 1, 0.3),
        (12, 100, 20, 6, 0.3),
    ):
        features = draw(rng, num_query + num_gallery)
        query, gallery = features[:num_query], features[num_query:]
        config = RerankConfig.preset(preset, k1=k1, k2=k2, lambda_=share)
        expected = dense_rerank(preset, query, gallery, k1, k2, share)
        errors.append(np.abs(distances(query, gallery, config) - expected).ravel())
    every = np.concatenate(errors)
    if config.half_precision:  # a last bit of float32 may turn a last bit of float16
        assert (every > 3e-6).mean() < 0.05
        assert every.max() < 4e-3
    else:
        assert every.max() < 3e-6


@pytest.mark.parametrize("preset", ["original", "torchreid"])
def test_lengths_of_features_count_where_they_are_not_scaled(preset: str) -> None:
    rng = np.random.default_rng(0)
    features = 40 * people(rng, 200) * rng.uniform(0.5, 2, (200, 1))
    found = distances(features[:30], features[30:], RerankConfig.preset(preset))
    np.testing.assert_allclose(found, dense_rerank(preset, features[:30], features[30:], 20, 6, 0.3), rtol=0, atol=3e-6)
    scaled = distances(features[:30], features[30:], RerankConfig.preset(preset, unit_features=True))
    assert np.abs(found - scaled).max() > 0.01


def test_every_convention_changes_the_result() -> None:
    """Each field is used: a result that did not depend on one would hide a preset that is not what it says."""
    features = people(np.random.default_rng(1), 150) * np.linspace(1, 2, 150)[:, None]
    base = RerankConfig()
    for change in (
        {"k1": 10}, {"k2": 3}, {"lambda_": 0.5}, {"unit_features": False}, {"power": 2}, {"divide_by_max": False},
        {"k1_counts_self": True}, {"mix_cosine": True}, {"half_precision": True},
    ):  # fmt: skip
        other = distances(features[:20], features[20:], replace(base, **change))
        assert np.abs(other - distances(features[:20], features[20:], base)).max() > 1e-5, change


def test_lambda_1_ranks_as_cosine_similarity_does() -> None:
    features = random_features(np.random.default_rng(2), 120)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = distances(features[:20], features[20:], RerankConfig(lambda_=1.0))
    np.testing.assert_array_equal(np.argsort(found), np.argsort(-features[:20] @ features[20:].T))


@pytest.mark.parametrize("num_gallery", [1, 2, 63, 203])
def test_equal_crops_stay_equally_far(num_gallery: int) -> None:
    """Products treat the rows at an odd end by another routine, in which equal rows need not score the same."""
    rng = np.random.default_rng(num_gallery)
    gallery = np.tile(rng.normal(size=257), (num_gallery, 1))
    for preset in PRESETS:
        config = RerankConfig.preset(preset, k1=1, k2=1, lambda_=1.0)
        found = distances(rng.normal(size=(5, 257)), gallery, config)
        assert (found == found[:, :1]).all()


def test_jaccard_distance_is_exactly_one_where_no_neighbour_is_shared() -> None:
    """Two groups of copies, at right angles."""
    gallery = np.repeat(np.eye(2), 30, axis=0)
    found = distances(np.eye(2), gallery, RerankConfig(k1=5, k2=2, lambda_=0.0))
    assert (found[0, 30:] == 1).all()
    assert (found[1, :30] == 1).all()
    assert found[0, :30].min() < 1e-6


def noisy_people(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (500, 16) features of 40 people, the same at length 1, and whose they are."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, 40, 500)
    features = rng.normal(size=(40, 16))[pids] + 0.9 * rng.normal(size=(500, 16))
    return features, features / np.linalg.norm(features, axis=1, keepdims=True), pids


def test_re_ranking_finds_people_better() -> None:
    features, unit, pids = noisy_people(3)
    before = mean_ap(unit[:60] @ unit[60:].T, pids[:60], pids[60:])
    after = mean_ap(-distances(features[:60], features[60:], RerankConfig(k1=10, k2=3)), pids[:60], pids[60:])
    assert after > before + 0.05


def test_result_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features = people(np.random.default_rng(4), 700)
    whole = distances(features[:150], features[150:], RerankConfig())
    monkeypatch.setattr(reranking, "_TABLE_CELLS", 1)
    monkeypatch.setattr(features_module, "SCORE_BYTES", 1)
    monkeypatch.setattr(features_module, "_READY_TILE_ROWS", 128)
    blocks = list(rerank(features[:150], features[150:]))
    assert [first for first, _ in blocks] == list(range(0, 150, 8))
    np.testing.assert_allclose(-np.concatenate([block for _, block in blocks]), whole, rtol=0, atol=3e-6)


def test_memory_stays_below_the_matrix() -> None:
    """N × N would be 36 MB; numpy reports its arrays to tracemalloc."""
    features = people(np.random.default_rng(6), 3000).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "SCORE_BYTES", 1 << 20)
        patch.setattr(reranking, "_TABLE_CELLS", 1 << 18)
        tracemalloc.start()
        for _, block in rerank(features[:800], features[800:], RerankConfig(k1=5, k2=2)):
            del block
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 9e6, peak


def test_memory_mapped_and_other_precisions_give_the_same(tmp_path: Path) -> None:
    features = people(np.random.default_rng(8), 90).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    expected = distances(features[:10].astype(np.float64), features[10:].astype(np.float64), RerankConfig())
    np.testing.assert_array_equal(distances(mapped[:10], mapped[10:], RerankConfig()), expected)
    np.testing.assert_array_equal(mapped, features)


@pytest.mark.parametrize("kinds", [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float16", "float64")])
def test_tensors_are_taken_as_they_are(kinds: tuple[str, str]) -> None:
    torch = pytest.importorskip("torch")
    features = torch.tensor(people(np.random.default_rng(12), 90))
    parts = [features[:10].to(getattr(torch, kinds[0])), features[10:].to(getattr(torch, kinds[1]))]
    rounded = [part.double().numpy() for part in parts]
    parts[0].requires_grad_()
    np.testing.assert_array_equal(distances(*parts, RerankConfig()), distances(*rounded, RerankConfig()))
    np.testing.assert_array_equal(expand_queries(*parts, 3), expand_queries(*rounded, 3))


def test_tensors_of_a_gpu_are_taken_and_expanded_ones_go_back_to_it() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    features = people(np.random.default_rng(13), 300).astype(np.float32)
    query, gallery = features[:50], features[50:]
    on_gpu = [torch.tensor(one, device="cuda") for one in (query, gallery)]
    labels = np.arange(50) % 9, np.arange(250) % 9, np.zeros(50, int), np.ones(250, int)
    np.testing.assert_array_equal(distances(*on_gpu, RerankConfig()), distances(query, gallery, RerankConfig()))
    expanded = expand_queries(*on_gpu, 3)
    assert expanded.device == on_gpu[0].device
    expected = evaluate(expand_queries(query, gallery, 3), gallery, *labels)
    assert evaluate(expanded, on_gpu[1], *labels).mAP == pytest.approx(expected.mAP, abs=1e-4)
    labelled = expected.labels
    assert evaluate_blocks(rerank(*on_gpu), labelled).mAP == evaluate_blocks(rerank(query, gallery), labelled).mAP


def test_progress_is_told_to_the_end() -> None:
    told = []
    list(rerank(np.eye(70), np.eye(70), progress=lambda *step: told.append(step)))
    assert ("finding neighbours", 140, 140) in told
    assert told[-1] == ("re-ranking", 70, 70)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k1": 0}, "k1 0 is not at least 1"),
        ({"k2": -1}, "k2 -1 is not at least 1"),
        ({"lambda_": 1.5}, "lambda_ 1.5 is not in 0..1"),
        ({"lambda_": float("nan")}, "lambda_ nan"),
        ({"power": 3}, "power 3 is not 1 or 2"),
        ({"mix_cosine": True, "unit_features": False}, "mix_cosine needs unit_features"),
    ],
)
def test_bad_configs_are_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        RerankConfig(**changes)
    with pytest.raises(EvaluationError, match=message):
        RerankConfig.preset("original", **changes)


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(EvaluationError, match="no preset 'torch'; there is original, torchreid, "):
        RerankConfig.preset("torch")


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        (np.full((2, 3), np.nan), np.ones((4, 3)), "2 query_features are NaN.* the first is row 0"),
        (
            np.ones((2, 3)),
            np.diag([1.0, 0, 1]),
            "1 gallery_features are NaN, infinite, all zero, or of .*; the first is row 1",
        ),
        (np.ones((2, 3)), np.ones((4, 2)), "query features have 3 columns, gallery features 2"),
        (np.ones((2, 3), int), np.ones((4, 3)), "query_features are int64"),
        (np.ones(3), np.ones((4, 3)), "expected float"),
        (np.ones((2, 3)), np.empty((0, 3)), "gallery_features are float64"),
    ],
)
def test_bad_features_are_named_before_anything_is_done(query, gallery, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        rerank(query, gallery)
    with pytest.raises(EvaluationError, match=message):
        expand_queries(query, gallery, 1)


def test_features_that_are_not_scaled_may_be_zero_but_not_huge() -> None:
    config = RerankConfig.preset("original")
    assert np.isfinite(distances(np.zeros((1, 3)), np.eye(3), config)).all()
    with pytest.raises(EvaluationError, match="1 gallery_features are NaN, infinite, or longer than 1e15"):
        rerank(np.ones((1, 3)), np.diag([1, 1, 1e30]), config)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_expansion_equals_its_formula(k: int, alpha: float) -> None:
    rng = np.random.default_rng(9)
    query, gallery = rng.normal(size=(70, 8)), rng.normal(size=(200, 8))
    found = expand_queries(query, gallery, k, alpha=alpha)
    assert (found.dtype, found.shape) == (np.float32, (70, 8))
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    for row, one in zip(found, query, strict=True):
        near = np.argsort(-gallery @ one)[:k]
        expected = one + (np.maximum(gallery[near] @ one, 0) ** alpha) @ gallery[near]
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)


def test_expansion_among_the_rows_themselves_leaves_each_row_out() -> None:
    rng = np.random.default_rng(10)
    rows = people(rng, 130)
    found = expand_queries(rows, None, 4)
    for number in (0, 64, 129):
        others = np.delete(rows, number, axis=0)
        np.testing.assert_allclose(found[number], expand_queries(rows[number : number + 1], others, 4)[0], atol=1e-6)
    alone = expand_queries(np.array([[0.0, 2.0]]), None, 3)
    np.testing.assert_array_equal(alone, [[0, 1]])


def test_expansion_finds_people_better() -> None:
    features, unit, pids = noisy_people(11)
    before = mean_ap(unit[:60] @ unit[60:].T, pids[:60], pids[60:])
    expanded = expand_queries(features[:60], features[60:], 5, alpha=3)
    augmented = expand_queries(features[60:], None, 5, alpha=3)
    assert mean_ap(expanded @ unit[60:].T, pids[:60], pids[60:]) > before + 0.02
    assert mean_ap(expanded @ augmented.T, pids[:60], pids[60:]) > before + 0.05


@pytest.mark.parametrize(
    ("k", "alpha", "message"), [(0, 0, "k 0 is not at least 1"), (1, -1, "alpha -1"), (1, np.nan, "alpha nan")]
)
def test_bad_expansions_are_named(k: int, alpha: float, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        expand_queries(np.eye(2), np.eye(2), k, alpha=alpha)


def test_expansion_that_adds_up_to_nothing_is_named() -> None:
    with pytest.raises(EvaluationError, match="1 expanded query_features are NaN, infinite, all zero"):
        expand_queries(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]]), 1)
