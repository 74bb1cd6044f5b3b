from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from entire_id.loading.decode import decode_rgb

from builders import image_bytes


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@given(st.integers(0, 999), st.integers(1, 90), st.integers(1, 90))
def test_same_pixels_as_pillow(seed: int, width: int, height: int) -> None:
    for kind in ("JPEG", "PNG"):
        data = image_bytes(seed, (width, height), kind)
        pixels = decode_rgb(data)
        assert pixels.shape == (height, width, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (8, 12), 90 if mode == "L" else (0, 128, 255, 0)).save(file, "JPEG")
    np.testing.assert_allclose(decode_rgb(file.getvalue()), pillow(file.getvalue()), atol=2)


def test_what_nobody_can_decode_is_an_os_error() -> None:
    with pytest.raises(OSError, match="cannot identify"):
        decode_rgb(b"\xff\xd8\xff nothing")


def test_real_crops_have_the_same_pixels_as_with_pillow(real_crops) -> None:
    for path in sorted((real_crops / "query").iterdir()):
        np.testing.assert_array_equal(decode_rgb(path.read_bytes()), pillow(path.read_bytes()))


def test_sixteen_bits_a_pixel_become_eight() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(file, "PNG")
    assert decode_rgb(file.getvalue())[0, :, 0].tolist() == [0, 1, 255]


@given(st.integers(40, 150), st.binary(min_size=1, max_size=8))
def test_broken_images_are_an_os_error(position: int, damage: bytes) -> None:
    data = image_bytes(3, kind="PNG")
    with contextlib.suppress(OSError):
        decode_rgb(data[:position] + damage + data[position + len(damage) :])
