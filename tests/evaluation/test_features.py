from __future__ import annotations

import numpy as np
import pytest

from entire_id.errors import EvaluationError
from entire_id.evaluation import features as features_module
from entire_id.evaluation.features import as_matrix, join, products, score_blocks


@pytest.mark.parametrize("num", [1, 63, 64, 130])
def test_products_are_those_of_the_rows_joined(num: int) -> None:
    rng = np.random.default_rng(num)
    query, gallery = rng.normal(size=(num, 5)).astype(np.float32), rng.normal(size=(77, 5))
    joined = join({"query": query, "gallery": gallery}, unit=False)
    np.testing.assert_array_equal(joined, np.concatenate([query, gallery.astype(np.float32)]))
    found = np.concatenate([block for _, block in products(joined[:num], joined[num:])])
    np.testing.assert_allclose(found, query @ gallery.T, atol=1e-5)


def test_joined_features_have_length_1_where_asked_for() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5000, 3)) * rng.uniform(1e-9, 1e9, (5000, 1))
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    joined = join({"query": features[:10].astype(np.float32), "gallery": features[10:]}, unit=True)
    np.testing.assert_allclose(joined, expected, rtol=0, atol=3e-7)


def cosines(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    return (query / np.linalg.norm(query, axis=1)[:, None]) @ (gallery / np.linalg.norm(gallery, axis=1)[:, None]).T


@pytest.mark.parametrize("kind", ["float16", "float64", "columns", "fortran"])
def test_what_is_converted_again_and_again_gives_the_same_in_larger_blocks(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "SCORE_BYTES", 1)
    monkeypatch.setattr(features_module, "_CONVERTED_SCORE_BYTES", 4 * 9001 * 64)
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(100, 6)).astype(np.float32), rng.normal(size=(9001, 6)).astype(np.float32)
    given = {
        "float16": gallery.astype(np.float16),
        "float64": gallery.astype(np.float64),
        "columns": np.repeat(gallery, 2, axis=1)[:, ::2],
        "fortran": np.asfortranarray(gallery),
    }[kind]
    blocks = [(first, block.copy()) for first, block in score_blocks(query, given)]
    assert [first for first, _ in blocks] == [0, 64]
    assert next(score_blocks(query, gallery))[1].shape == (8, 9001)
    exact = cosines(query.astype(np.float64), given.astype(np.float64))
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kinds", [("float32", "bfloat16"), ("bfloat16", "float16"), ("float8_e4m3fn", "float64")])
@pytest.mark.parametrize("as_array", [True, False])
def test_features_on_the_cpu_may_be_of_two_types(kinds: tuple[str, str], as_array: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    query, gallery = (
        torch.tensor(rng.normal(size=(num, 5))).to(getattr(torch, kind))
        for num, kind in zip((7, 90), kinds, strict=True)
    )
    exact = cosines(*(one.double().numpy() for one in (query, gallery)))
    given = [
        one.numpy() if as_array and one.dtype in (torch.float32, torch.float16) else one for one in (query, gallery)
    ]
    ((_, block),) = score_blocks(*given)
    assert isinstance(block, np.ndarray)
    np.testing.assert_allclose(block, exact, rtol=0, atol=1e-6)


def test_tensors_that_numpy_can_hold_are_not_copied() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(3, 2, requires_grad=True)
    assert np.shares_memory(as_matrix(tensor, "query"), tensor.detach().numpy())


def test_features_on_two_devices_are_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(EvaluationError, match="query features are on cpu, gallery features on meta; bring both to one"):
        score_blocks(np.eye(2), torch.eye(2, device="meta"))


# --- the engine of GPUs, which torch also runs on the CPU -------------------------------------------------------------


def tensor_blocks(query, gallery) -> np.ndarray:
    from entire_id.evaluation.features_torch import score_blocks as on_tensors

    return np.concatenate([block.numpy().copy() for _, block in on_tensors(query, gallery)])


def test_tensors_are_multiplied_in_float32_under_autocast() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    query, gallery = (torch.tensor(rng.normal(size=(num, 64)), dtype=torch.float32) for num in (70, 5000))
    expected = cosines(query.double().numpy(), gallery.double().numpy())
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(tensor_blocks(query, gallery), expected, rtol=0, atol=1e-6)
        assert (query @ gallery.T).dtype == torch.bfloat16  # the caller's own setting stands


def test_blocks_are_float32_whatever_torch_takes_by_default() -> None:
    torch = pytest.importorskip("torch")
    try:
        torch.set_default_dtype(torch.float64)
        assert tensor_blocks(torch.eye(3), torch.eye(3)).dtype == np.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_callers_precision_is_set_aside_and_restored() -> None:
    """On a GPU, that is: the CPU multiplies as it always does."""
    torch = pytest.importorskip("torch")
    from entire_id.evaluation import features_torch

    settings = torch.backends.cuda.matmul
    if not hasattr(settings, "fp32_precision"):
        pytest.skip("torch has the older settings alone")
    device, at_first = torch.device("cpu"), settings.fp32_precision
    try:
        for name in ("tf32", "ieee", "none"):
            settings.fp32_precision = name
            before = settings.fp32_precision
            with features_torch._exact_products(device):
                assert settings.fp32_precision == "ieee"
            for _ in features_torch.score_blocks(torch.eye(3), torch.eye(3)):
                assert settings.fp32_precision == before  # while the caller works on a block, too
            assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = at_first


def test_older_settings_of_torch_are_set_aside_and_restored() -> None:
    torch = pytest.importorskip("torch")
    from entire_id.evaluation import features_torch

    at_first = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with features_torch._exact_products(torch.device("cpu")):
            assert getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "ieee"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(at_first)


@pytest.mark.parametrize("bad", [float("nan"), 0.0, float("inf")])
def test_bad_tensors_are_named(bad: float) -> None:
    torch = pytest.importorskip("torch")
    gallery = torch.ones(5, 2)
    gallery[3] = bad
    with pytest.raises(EvaluationError, match="1 gallery_features are NaN.* the first is row 3"):
        tensor_blocks(torch.eye(2), gallery)
