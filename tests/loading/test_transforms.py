"""Transforms against Pillow, against plain float64 formulas, and against what their docstrings promise."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from entire_id.loading.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    TrainTransform,
    crop_generator,
    erase,
    flip,
    normalise,
    on_pil,
    pad_crop,
    resize,
    stacked,
)

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
PLAIN = {"flip": 0.0, "pad": 0, "erase": 0.0}

sides = st.integers(1, 40)
seeds = st.integers(0, 2**32)


def crop(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_formula(pixels: np.ndarray, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> np.ndarray:
    return ((pixels.astype(np.float64) / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)


def views(pixels: np.ndarray) -> list[np.ndarray]:
    """The same pixels in other orders of memory."""
    wide = np.zeros((pixels.shape[0] * 2, pixels.shape[1] + 3, 3), np.uint8)
    wide[::2, 2:-1] = pixels
    return [np.asfortranarray(pixels), pixels[:, ::-1].copy()[:, ::-1], wide[::2, 2:-1]]


# --- single steps -----------------------------------------------------------------------------------------------------


@given(sides, sides, sides, sides, st.sampled_from(FILTERS))
def test_resize_is_pillows(height: int, width: int, new_height: int, new_width: int, name: str) -> None:
    pixels = crop(height, width)
    expected = np.asarray(Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling[name.upper()]))
    found = resize(pixels, new_height, new_width, name)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    assert found.flags.writeable


def test_resize_smooths_when_it_shrinks() -> None:
    board = np.where(np.indices((64, 64)).sum(0) % 2, 255, 0).astype(np.uint8)
    shrunk = resize(np.repeat(board[:, :, None], 3, axis=2), 16, 16)
    assert abs(shrunk[2:-2, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("number", range(3))
def test_order_in_memory_changes_nothing(number: int) -> None:
    pixels = crop(31, 17)
    view = views(pixels)[number]
    assert not view.flags.c_contiguous
    np.testing.assert_array_equal(resize(view, 50, 20), resize(pixels, 50, 20))
    np.testing.assert_array_equal(normalise(view), normalise(pixels))
    for transform in (TrainTransform(24, 12), TrainTransform(31, 17, dtype="uint8"), EvalTransform(31, 17)):
        of_view, of_pixels = (transform(one, np.random.default_rng(3)) for one in (view, pixels))
        np.testing.assert_array_equal(of_view, of_pixels)
        assert of_view.flags.c_contiguous


def test_flip_exchanges_left_and_right() -> None:
    pixels = crop(5, 4)
    for column in range(4):
        np.testing.assert_array_equal(flip(pixels)[:, column], pixels[:, 3 - column])


@given(sides, sides, st.integers(0, 45), seeds)
def test_pad_crop_is_a_crop_of_the_padded_picture(height: int, width: int, pad: int, seed: int) -> None:
    pixels = np.maximum(crop(height, width), 1)
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(0, 1))
    found = pad_crop(pixels, pad, np.random.default_rng(seed)).transpose(2, 0, 1)
    assert (windows == found).all(axis=(2, 3, 4)).any()


def test_pad_crop_moves_by_every_step() -> None:
    pixels, rng = np.full((9, 9, 3), 255, np.uint8), np.random.default_rng(0)
    shown = [pad_crop(pixels, 2, rng)[:, :, 0] > 0 for _ in range(300)]
    assert {tuple(np.argwhere(one)[[0, -1]].ravel()) for one in shown} == {
        (max(down, 0), max(right, 0), 8 + min(down, 0), 8 + min(right, 0))
        for down in range(-2, 3)
        for right in range(-2, 3)
    }


def erased_rows_and_columns(found: np.ndarray) -> tuple[int, int]:
    """Sides of what is filled in a picture that holds no such colour, after a look that it is one rectangle."""
    filled = (found == (1, 2, 3)).all(axis=2)
    rows, columns = filled.any(axis=1), filled.any(axis=0)
    np.testing.assert_array_equal(filled, rows[:, None] & columns)
    for axis in (rows, columns):
        assert (np.diff(np.flatnonzero(axis)) == 1).all()
    return int(rows.sum()), int(columns.sum())


@given(st.integers(8, 96), st.integers(8, 96), seeds)
def test_erased_rectangle_is_within_the_bounds(height: int, width: int, seed: int) -> None:
    pixels = np.maximum(crop(height, width), 4)
    before = pixels.copy()
    found = erase(pixels, np.random.default_rng(seed), (1, 2, 3))
    np.testing.assert_array_equal(pixels, before)
    rows, columns = erased_rows_and_columns(found)
    np.testing.assert_array_equal(found[(found != (1, 2, 3)).any(axis=2)], pixels[(found != (1, 2, 3)).any(axis=2)])
    assert 1 <= rows < height
    assert 1 <= columns < width
    # Either side was rounded by up to half a pixel.
    assert (rows - 0.5) * (columns - 0.5) <= 0.4 * height * width
    assert (rows + 0.5) * (columns + 0.5) >= 0.02 * height * width
    assert (rows - 0.5) / (columns + 0.5) <= 1 / 0.3
    assert (rows + 0.5) / max(columns - 0.5, 0.01) >= 0.3


def test_erasing_uses_its_whole_range() -> None:
    rng, pixels = np.random.default_rng(0), np.full((256, 128, 3), 9, np.uint8)
    sizes = np.array([erased_rows_and_columns(erase(pixels, rng, (1, 2, 3))) for _ in range(500)])
    areas, aspects = sizes.prod(axis=1) / (256 * 128), sizes[:, 0] / sizes[:, 1]
    assert areas.min() < 0.03
    assert areas.max() > 0.37
    assert aspects.min() < 0.35
    assert aspects.max() > 3.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_erasing_leaves_a_picture_in_which_nothing_fits(shape: tuple[int, int]) -> None:
    pixels = crop(*shape)
    assert erase(pixels, np.random.default_rng(0), (1, 2, 3)) is pixels


@given(sides, sides, seeds)
def test_normalise_is_the_formula(height: int, width: int, seed: int) -> None:
    pixels = crop(height, width, seed)
    found = normalise(pixels)
    assert (found.dtype, found.shape) == (np.float32, (3, height, width))
    np.testing.assert_allclose(found, by_formula(pixels), atol=1e-6)
    own = normalise(pixels, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    np.testing.assert_allclose(own, by_formula(pixels, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)), atol=1e-6)


def test_normalise_gives_the_bits_of_torch() -> None:
    torch = pytest.importorskip("torch")
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = torch.from_numpy(levels).permute(2, 0, 1).to(torch.float32).div(255).sub(mean).div(std)
    np.testing.assert_array_equal(normalise(levels), expected.numpy())


# --- whole transforms -------------------------------------------------------------------------------------------------


@given(sides, sides, seeds, st.sampled_from(["float32", "uint8"]))
def test_train_transform_gives_one_shape_and_repeats(height: int, width: int, seed: int, dtype: str) -> None:
    pixels = crop(height, width)
    before, transform = pixels.copy(), TrainTransform(24, 12, pad=3, dtype=dtype)
    found = transform(pixels, np.random.default_rng(seed))
    assert (found.shape, found.dtype) == ((3, 24, 12) if dtype == "float32" else (24, 12, 3), np.dtype(dtype))
    np.testing.assert_array_equal(found, transform(pixels, np.random.default_rng(seed)))
    np.testing.assert_array_equal(pixels, before)


def test_other_random_numbers_give_another_result() -> None:
    pixels, rng = crop(24, 12), np.random.default_rng(0)
    results = {TrainTransform(24, 12)(pixels, rng).tobytes() for _ in range(20)}
    assert len(results) == 20


@given(seeds, st.sampled_from(FILTERS))
def test_train_transform_with_nothing_at_random_is_that_of_evaluation(seed: int, name: str) -> None:
    pixels, rng = crop(30, 11), np.random.default_rng(seed)
    found = TrainTransform(24, 12, **PLAIN, filter=name)(pixels, rng)
    np.testing.assert_array_equal(found, EvalTransform(24, 12, filter=name)(pixels, rng))
    np.testing.assert_array_equal(found, normalise(resize(pixels, 24, 12, name)))


@given(seeds)
def test_probability_1_always_flips_and_erases(seed: int) -> None:
    pixels = np.maximum(crop(30, 20), 200)  # nothing has the colour of the mean
    always = TrainTransform(30, 20, flip=1, pad=0, erase=1, dtype="uint8")(pixels, np.random.default_rng(seed))
    erased = (always == (124, 116, 104)).all(axis=2)  # ImageNet's mean, in whole levels
    assert erased.any()
    np.testing.assert_array_equal(always[~erased], pixels[:, ::-1][~erased])


@given(st.floats(0, 1), seeds)
def test_erased_values_are_0_but_for_rounding(level: float, seed: int) -> None:
    transform = TrainTransform(16, 8, **PLAIN | {"erase": 1}, mean=(level, 0.5, 1 - level))
    pixels = np.full((16, 8, 3), 255 if level < 0.5 else 0, np.uint8)
    values = transform(pixels, np.random.default_rng(seed))
    changed = (values != normalise(pixels, transform.mean)).any(axis=0)
    assert changed.any()
    assert np.abs(values[:, changed]).max() <= 0.5 / 255 / min(IMAGENET_STD) + 1e-5


def test_probabilities_are_those_asked_for() -> None:
    pixels, rng = np.zeros((2, 2, 3), np.uint8), np.random.default_rng(0)
    pixels[:, 0] = 255
    transform = TrainTransform(2, 2, **PLAIN | {"flip": 0.3}, dtype="uint8")
    flipped = sum(int(transform(pixels, rng)[0, 1, 0] == 255) for _ in range(1000))
    assert 250 < flipped < 350  # 0.3 ± 3.4 standard deviations, and the seed is fixed


@pytest.mark.parametrize(
    "transform", [TrainTransform(5, 3, filter="bicubic"), EvalTransform(5, 3, std=(1.0, 0.5, 2.0))]
)
def test_transforms_travel_to_other_processes(transform: TrainTransform | EvalTransform) -> None:
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform
    pixels = crop(9, 9)
    np.testing.assert_array_equal(copy(pixels, np.random.default_rng(1)), transform(pixels, np.random.default_rng(1)))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("flipped", [0, 1])
def test_results_become_tensors_without_a_word(dtype: str, flipped: int) -> None:
    """torch warns of arrays that cannot be written to, and refuses strides below 0."""
    torch = pytest.importorskip("torch")
    transform = TrainTransform(8, 4, **PLAIN | {"flip": flipped}, dtype=dtype)
    for pixels in (crop(8, 4), crop(20, 10)):
        array = transform(pixels, np.random.default_rng(0))
        assert torch.utils.data.default_collate([array, array]).shape == (2, *array.shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "height 0 and width 128 are not at least 1 px"),
        ({"std": (0.2, 0.0, 0.2)}, r"std \(0.2, 0.0, 0.2\) is not above 0"),
        ({"filter": "cubic"}, "filter 'cubic' is not one of nearest, box, bilinear"),
        ({"dtype": "float16"}, "dtype 'float16' is not one of float32, uint8"),
    ],
)
@pytest.mark.parametrize("kind", [TrainTransform, EvalTransform])
def test_what_cannot_be_done_is_refused(kind: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("options", [{"flip": 1.5}, {"erase": -0.1}, {"pad": -1}, {"flip": float("nan")}])
def test_probabilities_and_moves_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))} "):
        TrainTransform(**options)


# --- transforms of others ---------------------------------------------------------------------------------------------


def halved(image: Image.Image) -> Image.Image:
    return image.reduce(2)


def test_transforms_of_pillow_images_fit_in() -> None:
    pixels, rng = crop(8, 6), np.random.default_rng(0)
    transform = pickle.loads(pickle.dumps(on_pil(halved)))
    found = transform(pixels, rng)
    np.testing.assert_array_equal(found, np.asarray(Image.fromarray(pixels).reduce(2)))
    assert found.flags.writeable


def test_tensors_come_back_as_the_array_that_they_hold() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0).reshape(1, 2, 3)
    found = on_pil(lambda image: tensor)(crop(2, 3), np.random.default_rng(0))
    assert np.shares_memory(found, tensor.numpy())


# --- one generator a crop, one array a batch --------------------------------------------------------------------------


def test_the_generator_of_a_crop_follows_from_its_numbers_whatever_their_type() -> None:
    drawn = crop_generator((1, 22, 3)).random(8)
    np.testing.assert_array_equal(crop_generator((np.int64(1), np.uint8(22), 3)).random(8), drawn)
    for others in ((12, 2, 3), (1, 2, 23), (1, 22, 3, 0), (1, 22, 4)):
        assert not np.isin(crop_generator(others).random(8), drawn).any(), others


def test_generators_of_neighbouring_crops_are_independent() -> None:
    drawn = np.array([crop_generator((0, epoch, place)).random(2) for epoch in range(40) for place in range(100)])
    assert np.abs(np.histogram(drawn[:, 0], 10, (0, 1))[0] - 400).max() < 100  # five deviations
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.08
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.08


@given(st.lists(st.tuples(st.integers(1, 2), st.sampled_from(["u1", "f4"])), min_size=1, max_size=5), st.integers(0, 2))
def test_images_of_one_shape_and_type_are_stacked_and_others_listed(kinds: list[tuple[int, str]], more: int) -> None:
    images = [np.full((rows, 2), place, kind) for place, (rows, kind) in enumerate(kinds)]
    found = stacked((image.copy() for image in images), len(images) + more)
    assert isinstance(found, np.ndarray) == (len(set(kinds)) == 1)
    assert len(found) == len(images)
    for image, each in zip(images, found, strict=True):
        np.testing.assert_array_equal(each, image, strict=True)


def test_an_image_may_be_overwritten_once_the_next_one_is_made() -> None:
    buffer = np.zeros((2, 2), np.uint8)

    def overwritten():
        for number in range(3):
            buffer[:] = number
            yield buffer

    assert stacked(overwritten(), 3)[:, 0, 0].tolist() == [0, 1, 2]


def test_what_is_no_array_is_listed() -> None:
    assert stacked(iter(["a", "b"]), 2) == ["a", "b"]
