"""What is done to a crop before a network sees it, on arrays, with Pillow and numpy alone: torchvision is not needed.

A transform is a callable `transform(pixels, rng)`: it takes a crop, (h, w, 3) uint8 RGB, and a `numpy.random.Generator`
from which all its random numbers come, and returns an array of a fixed shape. `TrainTransform` and `EvalTransform` are
the usual ones of the field; `on_pil` makes one of what torchvision and others write for Pillow's images.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xxhash
from numpy.random.bit_generator import ISeedSequence
from PIL import Image

from entire_id.images import RgbImage

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "EvalTransform",
    "Filter",
    "Output",
    "TrainTransform",
    "Transform",
    "crop_generator",
    "erase",
    "flip",
    "normalise",
    "on_pil",
    "pad_crop",
    "resize",
    "stacked",
]

Transform = Callable[[RgbImage, np.random.Generator], npt.NDArray[Any]]
"""Takes (h, w, 3) uint8 RGB and a source of random numbers; returns an array of the same shape and type every time."""

Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Pillow's resampling filters. All but `nearest` average over the pixels that they shrink."""

Output = Literal["float32", "uint8"]
"""(3, height, width) float32, normalised; or (height, width, 3) uint8 RGB, for a GPU that normalises."""

Triple = tuple[float, float, float]

# Mean and deviation of ImageNet's R, G, B in [0, 1], as torchvision's models take them: what ReID code normalises by.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

_ERASED_AREA = 0.02, 0.4  # share of the picture
_ERASED_ASPECT = 0.3, 1 / 0.3  # height / width
_MAX_DRAWS = 100  # of a rectangle that fits; at 2 : 1 five draws in six do


def resize(pixels: RgbImage, height: int, width: int, filter: Filter = "bilinear") -> RgbImage:  # noqa: A002
    """Return the picture at another size, (height, width, 3) uint8; the picture itself where it has that size.

    These are the pixels of Pillow's `resize`, and so of torchvision's `Resize` on an image of Pillow. It smooths when
    it shrinks (antialiasing); OpenCV's `resize` does not, and gives other pixels.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        height: in px, at least 1.
        width: in px, at least 1.
        filter: see `Filter`. torchreid takes bilinear, fast-reid and TransReID bicubic for training.

    >>> resize(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), 1, 4)[0, :, 0].tolist()
    [0, 64, 191, 255]
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling[filter.upper()])
    return np.array(picture)  # a copy: what Pillow lends cannot be written to, of which torch warns


def flip(pixels: RgbImage) -> RgbImage:
    """Return a copy of the picture, (h, w, 3) uint8, with left and right exchanged.

    >>> flip(np.array([[[1, 1, 1], [2, 2, 2]]], np.uint8))[0, :, 0].tolist()
    [2, 1]
    """
    flipped = np.empty(pixels.shape, np.uint8)
    for channel in range(3):  # four times as fast as all at once
        flipped[:, :, channel] = pixels[:, ::-1, channel]
    return flipped


def pad_crop(pixels: RgbImage, pad: int, rng: np.random.Generator) -> RgbImage:
    """Return the picture moved at random, by at most `pad` px either way; what comes in is black.

    The same as `pad` black px around it, then a crop of the old size anywhere in that: torchvision's `Pad` and
    `RandomCrop`, as ReID code has them.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        pad: px, at least 0.
        rng: where the move comes from.

    Returns:
        (h, w, 3) uint8, not the input.
    """
    height, width = pixels.shape[:2]
    down, right = (int(move) for move in rng.integers(-pad, pad, 2, endpoint=True))
    moved = np.zeros(pixels.shape, np.uint8)
    rows, columns = _overlap(height, down), _overlap(width, right)
    moved[rows[0], columns[0]] = pixels[rows[1], columns[1]]
    return moved


def _overlap(length: int, move: int) -> tuple[slice, slice]:
    """Return which part of an axis still shows something after a move, and which part of the original that is."""
    move = max(-length, min(move, length))
    return slice(max(move, 0), length + min(move, 0)), slice(max(-move, 0), length + min(-move, 0))


def erase(pixels: RgbImage, rng: np.random.Generator, fill: tuple[int, int, int]) -> RgbImage:
    """Return a copy with one rectangle filled; the picture itself where none fits, as in the smallest ones.

    Random erasing: Z. Zhong et al., "Random Erasing Data Augmentation", AAAI 2020 (arXiv 1708.04896). The rectangle has
    0.02 to 0.4 of the area, uniformly, and a height of 0.3 to 3.33 widths, uniformly in the logarithm, so that tall and
    wide ones are alike common; both before its sides are rounded to whole px, of which each is at least 1 and less than
    the picture's. torchvision and timm draw it so; the paper draws the aspect itself uniformly.

    Code bases fill it differently: the paper with random pixels; TransReID with normal noise, after normalising;
    fast-reid with a mean colour, before; torchvision with 0, which is the mean when it comes after normalising.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        rng: where the rectangle comes from.
        fill: R, G, B in [0, 255].
    """
    height, width = pixels.shape[:2]
    log_low, log_high = math.log(_ERASED_ASPECT[0]), math.log(_ERASED_ASPECT[1])
    for _ in range(_MAX_DRAWS):
        area = rng.uniform(*_ERASED_AREA) * height * width
        aspect = math.exp(rng.uniform(log_low, log_high))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= rows < height and 1 <= columns < width:
            top, left = rng.integers(height - rows, endpoint=True), rng.integers(width - columns, endpoint=True)
            erased = pixels.copy()
            erased[top : top + rows, left : left + columns] = fill
            return erased
    return pixels


def normalise(
    pixels: RgbImage, mean: npt.ArrayLike = IMAGENET_MEAN, std: npt.ArrayLike = IMAGENET_STD
) -> npt.NDArray[np.float32]:
    """Return (pixels / 255 - mean) / std, (3, h, w) float32, computed in that order in float32.

    The same bits as torchvision's `ToTensor` and `Normalize` give.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        mean: of R, G, B in [0, 1].
        std: of R, G, B, above 0.
    """
    height, width = pixels.shape[:2]
    values = np.empty((3, height, width), np.float32)
    values[...] = pixels.transpose(2, 0, 1)
    values /= np.float32(255)
    values -= np.array(mean, np.float32)[:, None, None]
    values /= np.array(std, np.float32)[:, None, None]
    return values


@dataclass(frozen=True, slots=True)
class TrainTransform:
    """Resize, flip, pad and crop, erase, normalise: the usual augmentation of ReID, with its usual figures.

    Erasing fills with the mean colour, as fast-reid does, before the values are normalised: rounded to whole levels, so
    that erased values are 0 within 0.5 / 255 / std.

    With `dtype="uint8"` the rest is for the GPU, which does it faster: a batch is a quarter of the size, and
    `images.to("cuda", non_blocking=True).permute(0, 3, 1, 2)` is (n, 3, height, width) in the channels-last order of
    memory that convolutions like; then scale, mean and std.

    Attributes:
        height: of what it returns, px, at least 1.
        width: likewise.
        flip: probability of exchanging left and right, in [0, 1].
        pad: largest move along either axis, px, at least 0; what comes in is black. See `pad_crop`.
        erase: probability that a rectangle is erased, in [0, 1]. See `erase`.
        mean: of R, G, B in [0, 1]: what is subtracted, and the colour of what is erased.
        std: of R, G, B, above 0.
        filter: how crops are resized. See `Filter`.
        dtype: what is returned. See `Output`.

    Example:
        >>> transform = TrainTransform(256, 128)
        >>> transform(np.zeros((90, 40, 3), np.uint8), np.random.default_rng(0)).shape
        (3, 256, 128)
    """

    height: int = 256
    width: int = 128
    _: KW_ONLY
    flip: float = 0.5
    pad: int = 10
    erase: float = 0.5
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    filter: Filter = "bilinear"
    dtype: Output = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            ValueError: an attribute is out of its range.
        """
        _check(self)
        for name, probability in (("flip", self.flip), ("erase", self.erase)):
            if not 0 <= probability <= 1:
                raise ValueError(f"{name} {probability!r} is no probability in [0, 1]")
        if self.pad < 0:
            raise ValueError(f"pad {self.pad!r} is below 0")

    def __call__(self, pixels: RgbImage, rng: np.random.Generator) -> npt.NDArray[Any]:
        """Return what `dtype` says, of a crop (h, w, 3) uint8 RGB; another `rng`, another result."""
        picture = resize(pixels, self.height, self.width, self.filter)
        if rng.random() < self.flip:
            picture = flip(picture)
        if self.pad:
            picture = pad_crop(picture, self.pad, rng)
        if rng.random() < self.erase:
            red, green, blue = (min(max(round(255 * value), 0), 255) for value in self.mean)
            picture = erase(picture, rng, (red, green, blue))
        return _output(picture, self)


@dataclass(frozen=True, slots=True)
class EvalTransform:
    """Resize and normalise, nothing at random: for features, and for whatever is scored.

    Attributes:
        height: of what it returns, px, at least 1.
        width: likewise.
        mean: of R, G, B in [0, 1].
        std: of R, G, B, above 0.
        filter: how crops are resized: as in training. See `Filter`.
        dtype: what is returned. See `Output`.
    """

    height: int = 256
    width: int = 128
    _: KW_ONLY
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    filter: Filter = "bilinear"
    dtype: Output = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            ValueError: an attribute is out of its range.
        """
        _check(self)

    def __call__(self, pixels: RgbImage, rng: np.random.Generator | None = None) -> npt.NDArray[Any]:  # noqa: ARG002
        """Return what `dtype` says, of a crop (h, w, 3) uint8 RGB. `rng` is not used."""
        return _output(resize(pixels, self.height, self.width, self.filter), self)


def _check(transform: TrainTransform | EvalTransform) -> None:
    if min(transform.height, transform.width) < 1:
        raise ValueError(f"height {transform.height!r} and width {transform.width!r} are not at least 1 px")
    if min(transform.std) <= 0:
        raise ValueError(f"std {transform.std!r} is not above 0")
    for name, value, known in (
        ("filter", transform.filter, get_args(Filter)),
        ("dtype", transform.dtype, get_args(Output)),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")


def _output(picture: RgbImage, transform: TrainTransform | EvalTransform) -> npt.NDArray[Any]:
    if transform.dtype == "uint8":
        return np.ascontiguousarray(picture)  # whatever view of another array came in
    return normalise(picture, transform.mean, transform.std)


@dataclass(frozen=True, slots=True)
class _OnPil:
    transform: Callable[[Image.Image], Any]

    def __call__(self, pixels: RgbImage, rng: np.random.Generator) -> npt.NDArray[Any]:
        with _torch_seeded(rng):
            return np.require(self.transform(Image.fromarray(pixels)), requirements="W")


@contextmanager
def _torch_seeded(rng: np.random.Generator) -> Iterator[None]:
    torch = sys.modules.get("torch")
    if torch is None:  # nobody who draws from it
        yield
        return
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(int(rng.integers(2**63)))
        yield
    finally:
        generator.set_state(state)


def on_pil(transform: Callable[[Image.Image], Any]) -> Transform:
    """Return a transform that hands the crop to `transform` as an image of Pillow: for those of torchvision and others.

    Its result comes back as an array; a tensor of torch without a copy. It can be pickled if `transform` can.

    What torch draws meanwhile follows from the crop's generator, so that it repeats as the rest does; torch's own
    generator is left as it was. Numbers of Python's `random` and numpy's global generator are their own: an epoch
    repeats only if you seed them too, in every worker.

    Args:
        transform: takes one image of mode RGB; returns a tensor, an array or an image.

    Example:
        >>> halve = on_pil(lambda image: image.reduce(2))
        >>> halve(np.zeros((4, 6, 3), np.uint8), np.random.default_rng(0)).shape
        (2, 3, 3)
    """
    return _OnPil(transform)


class _Words(ISeedSequence):
    """The words that a bit generator starts from."""

    __slots__ = ("words",)

    def __init__(self, words: npt.NDArray[np.uint64]) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint64) -> npt.NDArray[np.uint64]:  # noqa: ARG002
        return self.words[:n_words]


def crop_generator(numbers: tuple[int, ...]) -> np.random.Generator:
    """Return the generator of one crop, which depends on `numbers` alone.

    PCG64, as numpy's `default_rng` gives, whose 256 bits of state are XXH3-128 of the numbers under two seeds: a fourth
    of the time that numpy takes to spread them, and there is one for every crop.

    >>> crop_generator((0, 3, 12, 5)).random() == crop_generator((0, 3, 12, 5)).random()
    True
    """
    data = " ".join(map(str, numbers)).encode()
    words = xxhash.xxh3_128_digest(data, 0) + xxhash.xxh3_128_digest(data, 1)
    return np.random.Generator(np.random.PCG64(_Words(np.frombuffer(words, "<u8"))))  # type: ignore[arg-type]


def stacked(images: Iterable[Any], num_images: int, empty: Callable[..., npt.NDArray[Any]] = np.empty) -> Any:  # noqa: ANN401 an array or a list
    """Return the images as one array (n, …) if they are arrays of one shape and type, else as a list of n.

    Each is copied as it comes and may go at once, so that its memory serves the next one while the caches hold it:
    keeping all, then stacking, takes a tenth more time than decoding and resizing do.

    Args:
        images: at least one.
        num_images: how many there are at most.
        empty: gives an array of a shape and a type to put them in.
    """
    rest = iter(images)
    first = next(rest)
    if not isinstance(first, np.ndarray):
        return [first, *rest]
    batch = empty((num_images, *first.shape), first.dtype)
    batch[0], num_stacked = first, 1
    for image in rest:
        if not isinstance(image, np.ndarray) or (image.shape, image.dtype) != (first.shape, first.dtype):
            return [*(each.copy() for each in batch[:num_stacked]), image, *rest]
        batch[num_stacked] = image
        num_stacked += 1
    return batch[:num_stacked]
