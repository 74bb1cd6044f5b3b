from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entire_id.errors import EvaluationError
from entire_id.evaluation import counting
from entire_id.evaluation import features as features_module
from entire_id.evaluation.labels import Labels
from entire_id.evaluation.protocols import PROTOCOLS, Protocol
from entire_id.evaluation.ranking import evaluate, evaluate_blocks
from entire_id.evaluation.scores import Scores

from brute_force import average_precision, ranks_of, single_shot_ranks

# The 24 vertices of the 24-cell: all of length 1, and every product of two is a multiple of 1/2. So scores are exact in
# float32, whatever the order in which they are added up, and ties are common and true.
VERTICES = np.concatenate([np.eye(4), -np.eye(4), np.array(list(itertools.product((-0.5, 0.5), repeat=4)))])

KERNELS = ["numpy", "numba"] if find_spec("numba") else ["numpy"]
BLOCK_PROTOCOLS = [protocol for protocol in PROTOCOLS.values() if not protocol.pool_queries]
ORDINARY = [protocol for protocol in BLOCK_PROTOCOLS if not protocol.single_shot]
protocols = st.builds(
    replace,
    st.sampled_from(ORDINARY),
    junk_pids=st.sampled_from([(-1,), (-1, 0), ()]),
    ap=st.sampled_from(["step", "trapezoid"]),
    mean=st.sampled_from(["valid", "all"]),
)


@st.composite
def cases(draw: st.DrawFn, max_gallery: int = 25):
    """Scores with many ties and their labels; few people, cameras and places, so that every rule is met."""
    num_query, num_gallery = draw(st.integers(1, 8)), draw(st.integers(1, max_gallery))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def numbers(low: int, high: int) -> list[np.ndarray]:
        return [rng.integers(low, high + 1, size) for size in (num_query, num_gallery)]

    pids, camids = numbers(-1, draw(st.integers(0, 4))), numbers(0, draw(st.integers(0, 2)))
    seqs, places = numbers(0, 1), numbers(0, 1)
    same = pids[0][:, None] == pids[1]
    itself = np.where(same.any(axis=1) & (rng.random(num_query) < 0.5), same.argmax(axis=1), -1)
    labels = Labels.of(
        *pids,
        *camids,
        query_columns={"seq": seqs[0], "continent": places[0]},
        gallery_columns={"seq": seqs[1], "continent": places[1]},
        query_in_gallery=draw(st.sampled_from([None, itself])),
    )
    levels = draw(st.sampled_from([2, 5, 1000]))
    scores = (rng.integers(-levels, levels + 1, (num_query, num_gallery)) / 8).astype(np.float32)
    return scores, labels, rng


def in_blocks(scores, sizes):
    """`scores` in blocks of these sizes, over and over."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(scores):
            return
        yield start, scores[start : start + size].copy()
        start += size


def evaluated(scores, labels, protocol, **options):
    """The scores, or None where no query can be scored."""
    try:
        return evaluate_blocks(in_blocks(scores, [3]), labels, protocol, **options)
    except EvaluationError:
        return None


@given(cases(), protocols, st.sampled_from(["worst", "best", "stable"]), st.sampled_from(KERNELS))
@settings(max_examples=800)
def test_equals_a_stable_sort_in_float64(case, protocol: Protocol, tie: str, kernel: str) -> None:
    scores, labels, _ = case
    ranks = [ranks_of(scores, labels, query, protocol, tie) for query in range(len(scores))]
    found = evaluated(scores, labels, protocol, tie=tie, kernel=kernel, max_rank=30)
    assert (found is None) == (not any(ranks))
    if found is None:
        return
    precision = np.array([average_precision(one, protocol.ap) for one in ranks])
    penalty = np.array([len(one) / one[-1] if one else np.nan for one in ranks])
    first = np.array([one[0] if one else np.nan for one in ranks])
    counted = np.array([bool(one) for one in ranks])
    if protocol.mean == "all":
        counted |= ~np.isin(labels.query_pids, protocol.junk_pids)
    number = counted.sum()
    np.testing.assert_allclose(found.average_precision, precision, atol=1e-12)
    np.testing.assert_allclose(found.inverse_penalty, penalty, atol=1e-12)
    np.testing.assert_array_equal(found.first_rank, first)
    assert found.ranks.tolist() == list(itertools.chain(*ranks))
    assert found.num_positives.tolist() == [len(one) for one in ranks]
    assert found.mAP == pytest.approx(np.nansum(precision) / number, abs=1e-12)
    assert found.mINP == pytest.approx(np.nansum(penalty) / number, abs=1e-12)
    for k in (1, 5, 30):
        assert found.rank(k) == pytest.approx((first <= k).sum() / number, abs=1e-12)
        within = [sum(n / r for n, r in enumerate(one, 1) if r <= k) / min(k, len(one)) for one in ranks if one]
        assert found.mAP_at(k) == pytest.approx(sum(within) / number, abs=1e-12)
    precise = [np.mean(np.array(one) <= len(one)) for one in ranks if one]
    assert found.r_precision() == pytest.approx(sum(precise) / number, abs=1e-12)
    assert sum(found.skipped.values()) == found.num_query - found.num_valid_query


@given(cases(), protocols)
@settings(max_examples=150)
def test_ambiguity_is_what_the_ties_leave_open(case, protocol: Protocol) -> None:
    scores, labels, _ = case
    worst, best, stable = (evaluated(scores, labels, protocol, tie=tie) for tie in ("worst", "best", "stable"))
    if worst is not None:
        assert worst.ambiguity == best.ambiguity == pytest.approx(best.mAP - worst.mAP, abs=1e-12)
        assert worst.mAP <= stable.mAP <= best.mAP
        assert any("ties make the mAP ambiguous" in one for one in worst.warnings) == (worst.ambiguity > 1e-4)


@given(cases(), protocols, st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from(["worst", "best"]))
@settings(max_examples=150)
def test_blocks_threads_kernels_and_the_order_of_rows_change_nothing(case, protocol, sizes, tie) -> None:
    scores, labels, rng = case
    whole = evaluated(scores, labels, protocol, tie=tie, kernel="numpy")
    if whole is None:
        return
    queries, crops = rng.permutation(len(scores)), rng.permutation(scores.shape[1])
    shuffled = labels.of_queries(queries)
    itself = shuffled.query_in_gallery
    shuffled = replace(
        shuffled,
        gallery_pids=labels.gallery_pids[crops],
        gallery_camids=labels.gallery_camids[crops],
        gallery_columns={name: values[crops] for name, values in labels.gallery_columns.items()},
        query_in_gallery=None if itself is None else np.append(np.argsort(crops), -1)[itself],
    )
    for kernel, num_threads in itertools.product(KERNELS, (1, 3)):
        blocks = in_blocks(scores[queries][:, crops].astype(rng.choice([np.float32, np.float64])), sizes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counting, "_SCORES_PER_THREAD", 1 if num_threads > 1 else math.inf)
            patch.setattr(counting, "_num_processors", lambda number=num_threads: number)
            other = evaluate_blocks(blocks, shuffled, protocol, tie=tie, kernel=kernel)
        np.testing.assert_array_equal(other.average_precision, whole.average_precision[queries])
        np.testing.assert_array_equal(other.cmc, whole.cmc)
        assert (other.mAP, other.mINP, other.ambiguity) == (whole.mAP, whole.mINP, whole.ambiguity)


@given(cases(), protocols, st.sampled_from(["worst", "best", "stable"]))
@settings(max_examples=100)
def test_tensors_give_the_same_numbers(case, protocol: Protocol, tie: str) -> None:
    torch = pytest.importorskip("torch")
    scores, labels, _ = case
    expected = evaluated(scores, labels, protocol, tie=tie)
    if expected is None:
        return
    blocks = ((start, torch.from_numpy(block)) for start, block in in_blocks(scores, [3]))
    found = evaluate_blocks(blocks, labels, protocol, tie=tie)
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    assert (found.mAP, found.mINP, found.ambiguity) == (expected.mAP, expected.mINP, expected.ambiguity)


@given(cases(max_gallery=9), st.sampled_from(["worst", "best", "stable"]))
@settings(max_examples=200)
def test_single_gallery_shot_is_the_mean_over_all_galleries(case, tie: str) -> None:
    scores, labels, _ = case
    protocol = PROTOCOLS["single_gallery_shot"]
    ranks = [single_shot_ranks(scores, labels, query, protocol, tie) for query in range(len(scores))]
    found = evaluated(scores, labels, protocol, tie=tie, max_rank=4)
    if found is None:
        assert not any(ranks)
        return
    for query, drawn in enumerate(ranks):
        if not drawn:
            assert np.isnan(found.average_precision[query])
            continue
        assert found.average_precision[query] == pytest.approx(np.mean([1 / rank for rank in drawn]), abs=1e-12)
        assert found.first_rank[query] == pytest.approx(np.mean(drawn), abs=1e-12)
        hits = [np.mean([rank <= k for rank in drawn]) for k in range(1, 5)]
        np.testing.assert_allclose(found.hits[query], hits, atol=1e-12)
    assert found.rank(2) == pytest.approx(np.nanmean(found.hits[:, 1]), abs=1e-12)


def arrays(num_query: int = 30, num_gallery: int = 200, seed: int = 0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_query + num_gallery, 8)).astype(np.float32)
    pids, camids = rng.integers(0, 20, num_query + num_gallery), rng.integers(0, 4, num_query + num_gallery)
    return tuple(part for values in (features, pids, camids) for part in (values[:num_query], values[num_query:]))


def test_drawn_galleries_come_close_to_the_expectation_and_follow_the_seed() -> None:
    expected = evaluate(*arrays(), protocol="single_gallery_shot")
    drawing = replace(PROTOCOLS["single_gallery_shot"], repeats=400, seed=1)
    drawn = evaluate(*arrays(), protocol=drawing)
    assert drawn.mAP == pytest.approx(expected.mAP, abs=0.02)
    assert drawn.rank(5) == pytest.approx(expected.rank(5), abs=0.03)
    assert drawn.mAP != expected.mAP
    assert evaluate(*arrays(), protocol=drawing).mAP == drawn.mAP
    assert evaluate(*arrays(), protocol=replace(drawing, seed=2)).mAP != drawn.mAP


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 25))
@settings(max_examples=150)
def test_features_of_exact_products_are_scored_exactly(seed: int, num_query: int, num_gallery: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = [rng.integers(0, high, num_query + num_gallery) for high in (len(VERTICES), 4, 3)]
    features, pids, camids = VERTICES[numbers[0]], numbers[1] - 1, numbers[2]
    query, gallery = features[:num_query], features[num_query:]
    labels = [part for values in (pids, camids) for part in (values[:num_query], values[num_query:])]
    ranks = [
        ranks_of(query @ gallery.T, Labels.of(*labels), number, PROTOCOLS["market1501"], "worst")
        for number in range(num_query)
    ]
    if any(ranks):
        found = evaluate(query * 3, gallery * 0.5, *labels)
        assert found.ranks.tolist() == list(itertools.chain(*ranks))


def test_a_known_case() -> None:
    """Gallery by similarity: wrong, right, right's own camera (ignored), right → ranks 2 and 3."""
    gallery = np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]])
    arguments = np.array([[1.0, 0.0]]), gallery, [7], [8, 7, 7, 7], [0], [0, 1, 0, 2]
    scores = evaluate(*arguments)
    assert scores.mAP == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.mINP == pytest.approx(2 / 3)
    assert scores.cmc[:3].tolist() == [0, 1, 1]
    trapezoid = evaluate(*arguments, protocol="market1501_trapezoid")
    assert trapezoid.mAP == pytest.approx(((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2)


def test_pooled_queries_are_the_mean_of_their_directions() -> None:
    query = np.array([[4.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    gallery = np.array([[1.0, 0.9], [1.0, 0.0], [0.0, 1.0]])
    scores = evaluate(query, gallery, [7, 7, 8], [7, 8, 9], [0, 0, 0], [1, 1, 1], protocol="multi_query")
    assert scores.num_query == 2
    assert scores.average_precision.tolist() == [1, 1]
    assert evaluate(query, gallery, [7, 7, 8], [7, 8, 9], [0, 0, 0], [1, 1, 1]).average_precision.tolist() == [
        0.5,
        0.5,
        1,
    ]
    with pytest.raises(EvaluationError, match="pools features, and scores hold none"):
        evaluate_blocks([], scores.labels, "multi_query")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_types_and_layouts_of_features_do_not_matter(kind: type) -> None:
    query, gallery, *labels = arrays()
    query, gallery = query.astype(np.float16), gallery.astype(np.float16)
    expected = evaluate(query, gallery, *labels)
    striped = np.repeat(gallery.astype(kind), 2, axis=1)[:, ::2]
    assert not striped.flags.c_contiguous
    found = evaluate(np.asfortranarray(query.astype(kind)), striped, *labels)
    np.testing.assert_array_equal(found.ranks, expected.ranks)


def test_memory_mapped_features_are_read_in_pieces(tmp_path: Path) -> None:
    query, gallery, *labels = arrays()
    np.save(tmp_path / "gallery.npy", gallery.astype(np.float16))
    expected = evaluate(query, gallery.astype(np.float16), *labels)
    found = evaluate(query, np.load(tmp_path / "gallery.npy", mmap_mode="r"), *labels)
    assert found.mAP == expected.mAP


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_memory_stays_bounded(tmp_path: Path, kind: str) -> None:
    """The matrix of scores would take 920 MiB, the features as float32 20 MiB more than they do."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "features.npy", rng.standard_normal((80_000, 64), np.float32).astype(np.float16))
    code = """
import resource, sys
import numpy as np
from entire_id.evaluation.ranking import evaluate
gallery = np.load(sys.argv[1], mmap_mode="r")
labels = np.arange(3000), np.arange(80_000) % 8_000 + 2900, np.zeros(3000, int), np.ones(80_000, int)
if sys.argv[2] == "float32":
    gallery = gallery.astype(np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluate(np.array(gallery[:3000]), gallery, *labels, kernel="numpy")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "features.npy"), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    block = 64 if kind == "float32" else 192
    assert float(done.stdout) < 10 + block + 30  # the file, the block, the library of the product


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_are_taken_as_they_are(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    query, gallery, *labels = arrays()
    kind = getattr(torch, dtype)
    tensors = torch.tensor(query).to(kind).requires_grad_(), torch.tensor(gallery).to(kind)
    rounded = [tensor.detach().float().numpy() for tensor in tensors]
    found = evaluate(*tensors, *(torch.from_numpy(values) for values in labels))
    np.testing.assert_array_equal(found.ranks, evaluate(*rounded, *labels).ranks)


def test_tensors_in_many_blocks_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, by what a GPU would run."""
    torch = pytest.importorskip("torch")
    from entire_id.evaluation import counting_torch, features_torch

    query, gallery, *labels = arrays(num_query=300, num_gallery=5000)
    tensors = torch.tensor(query).bfloat16(), torch.tensor(gallery).bfloat16()
    labelled = Labels.of(*labels)
    whole = evaluate_blocks(features_torch.score_blocks(*tensors), labelled)
    assert whole.mAP == pytest.approx(evaluate(*tensors, *labels).mAP, abs=1e-4)
    monkeypatch.setattr(features_torch, "_SCORE_BYTES", 1)
    monkeypatch.setattr(counting_torch, "_RUN_SCORES", 15_000)
    small = evaluate_blocks(features_torch.score_blocks(*tensors), labelled)
    np.testing.assert_array_equal(small.ranks, whole.ranks)


@pytest.mark.parametrize("protocol", ["market1501", "multi_query", "single_gallery_shot"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_are_scored_by_any_protocol(protocol: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    query, gallery, *labels = arrays()
    tensors = [torch.tensor(one).to(getattr(torch, dtype)) for one in (query, gallery)]
    rounded = [one.float().numpy() for one in tensors]
    assert evaluate(*tensors, *labels, protocol=protocol).mAP == evaluate(*rounded, *labels, protocol=protocol).mAP


@pytest.mark.parametrize("protocol", ["market1501", "multi_query", "single_gallery_shot"])
def test_tensors_of_a_gpu_are_scored_by_any_protocol(protocol: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    query, gallery, *labels = arrays(num_query=300, num_gallery=5000)
    expected = evaluate(query, gallery, *labels, protocol=protocol)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cuda", torch.bfloat16):
            tensors = [torch.tensor(one, device="cuda") for one in (query, gallery)]
            found = evaluate(*tensors, *labels, protocol=protocol)
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.mAP == pytest.approx(expected.mAP, abs=1e-5)
    assert found.num_query == expected.num_query


@pytest.mark.parametrize("kind", ["gradient", "inference"])
def test_tensors_from_within_torch_may_be_blocks(kind: str) -> None:
    torch = pytest.importorskip("torch")
    query, gallery, *labels = arrays()
    scores = query @ gallery.T
    expected = evaluate_blocks([(0, scores.copy())], Labels.of(*labels))
    with torch.inference_mode(kind == "inference"):
        block = torch.tensor(scores, requires_grad=kind == "gradient")
    assert evaluate_blocks([(0, block)], Labels.of(*labels)).mAP == expected.mAP


def test_result_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(*arrays(num_query=300))
    monkeypatch.setattr(features_module, "SCORE_BYTES", 1)
    blocks = evaluate(*arrays(num_query=300))
    np.testing.assert_array_equal(whole.average_precision, blocks.average_precision)
    np.testing.assert_array_equal(whole.cmc, blocks.cmc)


@pytest.mark.parametrize("num_columns", [1, 129, 768, 2048])
def test_products_of_other_shapes_differ_in_the_last_bits_only(num_columns: int, monkeypatch) -> None:
    """The bound that docs/evaluation.md states."""
    rng = np.random.default_rng(num_columns)
    query, gallery = (rng.normal(size=(rows, num_columns)).astype(np.float32) for rows in (70, 300))
    (whole,) = (block.copy() for _, block in features_module.score_blocks(query, gallery))
    exact = query.astype(np.float64) @ gallery.T.astype(np.float64)
    exact /= np.linalg.norm(query.astype(np.float64), axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    monkeypatch.setattr(features_module, "SCORE_BYTES", 1)
    small = np.concatenate([block.copy() for _, block in features_module.score_blocks(query, gallery)])
    rows = rng.permutation(300)
    ((_, shuffled), *_) = ((0, block.copy()) for _, block in features_module.score_blocks(query[:1], gallery[rows]))
    for scores in (whole, small):
        assert np.abs(scores - exact).max() < 1e-6
    assert np.abs(whole - small).max() <= 5e-7
    assert np.abs(whole[0, rows] - shuffled[0]).max() <= 5e-7


def test_thread_count_changes_nothing() -> None:
    code = """
import numpy as np
from entire_id.evaluation.ranking import evaluate
rng = np.random.default_rng(0)
features, pids, camids = rng.normal(size=(6000, 64)), rng.integers(0, 99, 6000), rng.integers(0, 3, 6000)
scores = evaluate(features[:900], features[900:], pids[:900], pids[900:], camids[:900], camids[900:])
print(scores.mAP.hex(), scores.ranks.sum())
"""
    environments = ({**os.environ, "OPENBLAS_NUM_THREADS": str(number)} for number in (1, 2))
    printed = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=one).stdout
        for one in environments
    }
    assert len(printed) == 1


def test_collapsed_model_scores_as_badly_as_it_can() -> None:
    query, gallery, *labels = arrays()
    scores = evaluate(np.ones_like(query), np.ones_like(gallery), *labels)
    assert scores.mAP < 0.1
    assert scores.rank(1) == 0
    assert scores.ambiguity > 0.9
    assert "has the model collapsed?" in scores.warnings[0]


def test_small_gallery_does_not_shorten_the_curve() -> None:
    features = np.eye(3)
    scores = evaluate(features, features, np.arange(3), np.arange(3), np.zeros(3, int), np.ones(3, int))
    assert scores.cmc.shape == (50,)
    assert scores.rank(10) == 1
    assert scores.warnings == ("the gallery has 3 crops, fewer than 50 ranks: the CMC curve is flat beyond",)
    with pytest.raises(EvaluationError, match="rank 51 is not in"):
        scores.rank(51)


def test_pid_zero_and_camera_zero_are_ordinary() -> None:
    features = np.eye(2)
    scores = evaluate(features, features, np.array([0, 1]), np.array([0, 1]), np.array([0, 0]), np.array([1, 1]))
    assert (scores.mAP, scores.num_valid_query) == (1, 2)


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16])
def test_integers_of_any_type_are_labels(kind: type) -> None:
    query, gallery, *labels = arrays()
    assert evaluate(query, gallery, *(values.astype(kind) for values in labels)).mAP == evaluate(*arrays()).mAP


def test_labels_are_compared_by_identity() -> None:
    labels = Labels.of([1, 2], [1, 2])
    assert labels == labels
    assert labels != Labels.of([1, 2], [1, 2])


def test_skipped_queries_are_counted_by_reason() -> None:
    features = np.eye(4)
    pids, camids = np.array([5, 6, -1, 7]), np.array([0, 0, 0, 0])
    scores = evaluate(features, features, pids, np.array([5, 6, -1, 9]), camids, np.array([1, 0, 1, 1]))
    assert (scores.num_query, scores.num_valid_query) == (4, 1)
    assert np.isnan(scores.average_precision[1:]).all()
    assert scores.skipped == {"junk": 1, "not in the gallery": 1, "there only among ignored crops": 1}
    everybody = replace(PROTOCOLS["market1501"], mean="all")
    counted = evaluate(
        features, features, pids, np.array([5, 6, -1, 9]), camids, np.array([1, 0, 1, 1]), protocol=everybody
    )
    assert counted.mAP == pytest.approx(scores.mAP / 3)


def test_people_of_the_training_set_are_counted() -> None:
    query, gallery, *labels = arrays()
    assert evaluate(query, gallery, *labels, train_pids=[100, 101]).warnings == ()
    for train_pids in (np.arange(10), set(range(10)), frozenset(range(10)), range(10), np.arange(10, dtype=np.uint64)):
        (warning,) = evaluate(query, gallery, *labels, train_pids=train_pids).warnings
        assert warning.startswith(f"{(labels[0] < 10).sum()} scored queries have the pid of a training identity")


@pytest.mark.parametrize(
    ("pids", "camids", "message"),
    [
        ([1, 2], [0, 1], "no query identity is in the gallery: query pids are 7..8, gallery pids 1..2"),
        ([7, 8], [0, 0], "every crop has camera 0.*c021 is camera 21"),
        (
            [7, 8],
            [0, 1],
            "the 2 query identities .* were all seen there by the query's own camera .*'all_cameras' keeps them",
        ),
    ],
)
def test_no_valid_query_says_why(pids: list[int], camids: list[int], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(np.eye(2), np.eye(2), np.array([7, 8]), np.array(pids), np.array(camids), np.array(camids))
    if pids == [7, 8]:
        scores = evaluate(np.eye(2), np.eye(2), [7, 8], pids, camids, camids, protocol="all_cameras")
        assert scores.mAP == 1


def test_queries_of_junk_alone_are_said_to_be_so() -> None:
    with pytest.raises(
        EvaluationError, match="every query is junk: query pids are -1..-1, and protocol 'market1501' sk"
    ):
        evaluate(np.eye(2), np.eye(2), [-1, -1], [-1, 5], [0, 0], [1, 1])


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (
            0,
            np.full((30, 8), np.nan, np.float32),
            "30 query_features are NaN, .* the first is row 0",
        ),
        (1, np.zeros((200, 8), np.float32), "200 gallery_features"),
        (1, np.full((200, 8), 1e200), "200 gallery_features .* a length outside 1e-15..1e15"),
        (0, np.ones((30, 7), np.float32), "query features have 7 columns, gallery features 8"),
        (0, np.ones((30, 8), np.int64), "expected float"),
        (0, np.empty((0, 8), np.float32), "expected float"),
        (0, [[1.0] * 8] * 30, "query_features are a list; expected a numpy array or a torch tensor"),
        (2, np.zeros(29, np.int64), r"query_pids have shape \(29,\); expected one for each of 30 query_features"),
        (3, np.zeros(200), "gallery_pids are float64"),
        (3, np.full(200, 2**64 - 1, np.uint64), "gallery_pids go up to 18446744073709551615"),
        (4, np.zeros(29, np.int64), r"query_camids are int64 \(29,\); expected integers \(30,\)"),
        (4, None, "cameras are given of query or gallery alone"),
        (5, np.zeros(200), "gallery_camids are float64"),
    ],
)
def test_bad_arrays_are_named(position: int, value: np.ndarray, message: str) -> None:
    values = list(arrays())
    values[position] = value
    with pytest.raises(EvaluationError, match=message):
        evaluate(*values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "duke"}, "no protocol 'duke'; there is market1501,"),
        ({"tie": "random"}, "tie 'random' is not one of worst, best, stable"),
        ({"kernel": "cython"}, "kernel 'cython' is not one of auto, numpy, numba"),
        ({"max_rank": 0}, "max_rank 0 is not at least 1"),
        ({"protocol": "intra_camera"}, r"needs the seq of every crop; give query_columns\['seq'\] and gallery_columns"),
        (
            {"protocol": "intra_camera", "query_seqs": [-1] * 30, "gallery_seqs": [0] * 200},
            "30 query crops have no seq",
        ),
        ({"protocol": "leave_one_continent_out"}, "needs the continent of every crop"),
        (
            {
                "protocol": "leave_one_continent_out",
                "query_columns": {"continent": ["unknown"] * 30},
                "gallery_columns": {"continent": ["unknown"] * 200},
            },
            "the continent of 30 of 30 query crops and 200 of 200 gallery crops is 'unknown'; name every camera in",
        ),
        (
            {
                "protocol": "leave_one_continent_out",
                "query_columns": {"continent": ["asia"] * 30},
                "gallery_columns": {"continent": ["unknown"] + ["asia"] * 199},
            },
            "the continent of 0 of 30 query crops and 1 of 200 gallery crops is 'unknown'",
        ),
        ({"query_columns": {"width": [1, 2]}}, r"query_columns\['width'\] has shape \(2,\); expected \(30,\)"),
        ({"train_pids": {"0001"}}, "train_pids are <U4"),
        ({"train_pids": "0001"}, "train_pids are <U4"),
        ({"train_pids": 1}, r"train_pids are int64 \(\); expected integers"),
        ({"train_pids": set()}, "train_pids are "),
        (
            {"protocol": "multi_query", "query_in_gallery": [-1] * 30},
            "query_in_gallery names one gallery crop a query, and protocol 'multi_query' makes one query of several",
        ),
        ({"query_in_gallery": [200] * 30}, "query_in_gallery is not in -1..199"),
        ({"query_in_gallery": [0] * 30}, "says that query 0 of pid .* is gallery crop 0, whose pid is"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(*arrays(), **options)


def test_cameras_are_asked_for_where_they_enter() -> None:
    query, gallery, query_pids, gallery_pids, *_ = arrays()
    with pytest.raises(EvaluationError, match="needs the camera of every crop; .* protocol 'no_camera'"):
        evaluate(query, gallery, query_pids, gallery_pids)
    scores = evaluate(query, gallery, query_pids, gallery_pids, protocol="no_camera")
    assert scores.mAP == evaluate(*arrays(), protocol="all_cameras").mAP


def test_a_set_searched_in_itself_leaves_out_the_query() -> None:
    features, pids = np.eye(4) + np.eye(4)[[1, 0, 3, 2]] / 2, np.array([1, 1, 2, 3])
    scores = evaluate(features, features, pids, pids, protocol="no_camera", query_in_gallery=np.arange(4))
    assert (scores.mAP, scores.num_valid_query) == (1, 2)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([(0, np.zeros((2, 4)))], "the blocks hold 2 rows of scores for 3 queries"),
        ([(0, np.zeros((4, 4)))], "the blocks hold 4 rows of scores for 3 queries"),
        ([(1, np.zeros((3, 4)))], "a block starts with query 1; expected query 0"),
        ([(0, np.zeros((3, 5)))], r"has shape \(3, 5\); not \(b, 4\)"),
        ([(0, np.zeros((3, 4), np.int32))], "is int32; expected float32 or float64"),
        ([(0, np.full((3, 4), np.nan))], "scores in the block of query 0 are NaN or infinite"),
        ([(0, np.full((3, 4), -np.inf))], "NaN or infinite"),
        ([(0, np.broadcast_to(np.zeros(4), (3, 4)))], "is read-only"),
        ([], "the blocks hold 0 rows"),
    ],
)
def test_blocks_that_do_not_fit_are_named(blocks: list, message: str) -> None:
    labels = Labels.of([1, 1, 1], [1, 1, 2, 2], [0, 0, 0], [1, 1, 1, 1])
    with pytest.raises(EvaluationError, match=message):
        evaluate_blocks(blocks, labels)


def test_inputs_are_not_changed() -> None:
    values = arrays()
    copies = [value.copy() for value in values]
    evaluate(*values)
    for value, copy in zip(values, copies, strict=True):
        np.testing.assert_array_equal(value, copy)


@pytest.mark.parametrize("columns", [1, 3, 64, 257, 768, 2048])
def test_ties_stay_ties_whatever_the_shape(columns: int) -> None:
    """Products treat the rows at an odd end by another routine, in which equal gallery rows scored differently."""
    rng = np.random.default_rng(columns)
    for num_query, num_gallery in itertools.product((1, 5, 63, 65), (1, 2, 7, 64, 203, 1000)):
        query = rng.normal(size=(num_query, columns)).astype(np.float32)
        gallery = np.tile(rng.normal(size=columns).astype(np.float32), (num_gallery, 1))
        pids = np.array([8] * (num_gallery - 1) + [7])
        labels = np.full(num_query, 7), pids, np.zeros(num_query, int), np.ones(num_gallery, int)
        assert set(evaluate(query, gallery, *labels).average_precision) == {1 / num_gallery}


def test_ties_between_tiles_and_threads_stay_ties() -> None:
    """Equal gallery rows in several tiles, in the odd end of the last, and in the runs of several threads."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(200, 48)).astype(np.float32)
    gallery = np.tile(rng.normal(size=48).astype(np.float32), (9001, 1))
    labels = np.full(200, 7), np.array([8] * 9000 + [7]), np.zeros(200, int), np.ones(9001, int)
    assert set(evaluate(query, gallery, *labels).average_precision) == {1 / 9001}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "import of numba halted"),
        ("raise ImportError('Numba needs NumPy 2.3 or less. Got NumPy 9.9.')", "Numba needs NumPy 2.3 or less"),
        ("raise SystemError('initialization of _internal failed')", "initialization of _internal failed"),
    ],
)
def test_without_a_numba_that_works_numpy_counts(
    source: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(*arrays(), kernel="numpy").mAP
    monkeypatch.delitem(sys.modules, "entire_id.evaluation.counting_numba", raising=False)
    if source is None:
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        (tmp_path / "numba.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "numba", raising=False)
    counting._compiled.cache_clear()
    try:
        assert evaluate(*arrays()).mAP == expected
        message = rf"kernel 'numba' cannot be used \({reason}.*\); type: pip install 'entire-id\[fast\]'"
        with pytest.raises(EvaluationError, match=message):
            evaluate(*arrays(), kernel="numba")
    finally:
        counting._compiled.cache_clear()


def test_systems_that_do_not_say_which_processors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(*arrays()).mAP
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert evaluate(*arrays()).mAP == expected


def test_progress_is_told() -> None:
    told = []
    evaluate(*arrays(), progress=lambda stage, done, total: told.append((stage, done, total)))
    assert told[-1] == ("evaluating", 30, 30)
    assert isinstance(evaluate(*arrays()), Scores)
