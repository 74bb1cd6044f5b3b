from __future__ import annotations

import numpy as np
import pytest

from entire_id.errors import EvaluationError
from entire_id.evaluation.camera_pairs import CameraPairCounter, evaluate_camera_pairs
from entire_id.evaluation.features import score_blocks
from entire_id.evaluation.labels import Labels


def drawn(num_cameras: int = 3):
    """Features of queries and gallery, and their labels."""
    rng = np.random.default_rng(0)
    pids, camids = rng.integers(0, 6, 90), np.arange(90) % num_cameras
    features = (rng.normal(size=(6, 8))[pids] + rng.normal(size=(90, 8))).astype(np.float32)
    return features[:30], features[30:], Labels.of(pids[:30], pids[30:], camids[:30], camids[30:])


def test_a_counter_leaves_the_blocks_as_they_are() -> None:
    query, gallery, labels = drawn()
    counter = CameraPairCounter(labels)
    for first, block in score_blocks(query, gallery):
        before = block.copy()
        counter.add(first, block)
        np.testing.assert_array_equal(block, before)
    assert counter.pairs().to_dict() == evaluate_camera_pairs(score_blocks(query, gallery), labels).to_dict()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_are_counted_as_arrays_are(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    query, gallery, labels = drawn()
    tensors = [torch.from_numpy(of).to(getattr(torch, dtype)) for of in (query, gallery)]
    arrays = [of.float().numpy() for of in tensors]
    found, expected = (evaluate_camera_pairs(score_blocks(*pair), labels) for pair in (tensors, arrays))
    np.testing.assert_allclose(found.mAP, expected.mAP)
    np.testing.assert_array_equal(found.num_valid_query, expected.num_valid_query)


def test_hundreds_of_cameras_are_refused_before_a_block_is_asked_for() -> None:
    """As in sets that give every crop a camera of its own."""
    number = 201
    labels = Labels.of(np.arange(number), np.arange(number), np.arange(number), np.full(number, 999))
    with pytest.raises(EvaluationError, match="the queries have 201 cameras and the gallery 1; at most 200 are paired"):
        evaluate_camera_pairs(iter(()), labels)


@pytest.mark.parametrize(
    ("protocol", "how"), [("multi_query", "pools queries"), ("single_gallery_shot", "draws galleries")]
)
def test_protocols_without_pairs_say_so(protocol: str, how: str) -> None:
    with pytest.raises(EvaluationError, match=f"no scores by camera pair, for protocol '{protocol}' {how}"):
        evaluate_camera_pairs(iter(()), drawn()[2], protocol)
