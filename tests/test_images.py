"""What the first and last bytes of an image tell, and its pixels."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from entire_id.images import MAX_PIXELS, ImageSize, Unusable, decode_rgb, decoding_error, image_size
from entire_id.records import Reason

from builders import image_bytes


def save(kind: str = "JPEG", size: tuple[int, int] = (24, 48), mode: str = "RGB", **options: object) -> bytes:
    """Return a noisy picture, so that the entropy-coded part is long and holds stuffed FF bytes."""
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


JPEGS = {
    "baseline": save(),
    "progressive": save(progressive=True),
    "optimised": save(optimize=True, quality=100),
    "restart-markers": save(restart_marker_blocks=2),
    "grey": save(mode="L"),
    "cmyk": save(mode="CMYK"),
    "with-comment": save(comment=b"an end \xff\xd9 that is none"),
    "with-thumbnail": save(exif=b"Exif\0\0" + save(size=(8, 8))),  # a whole JPEG, its end marker too, in the header
    "with-profile": save(icc_profile=b"\xff\xd9" * 40_000),  # two segments of nearly 64 KiB
    "one-pixel": save(size=(1, 1)),
}
PNGS = {
    "rgb": save("PNG"),
    "grey": save("PNG", mode="L"),
    "palette": save("PNG", mode="P"),
    "alpha": save("PNG", mode="RGBA"),
}


@pytest.mark.parametrize("data", [*JPEGS.values(), *PNGS.values()], ids=[*JPEGS, *PNGS])
def test_the_size_is_the_one_that_pillow_sees(data):
    assert image_size(data) == Image.open(io.BytesIO(data)).size


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["JPEG", "PNG"]))
@settings(max_examples=25)
def test_width_comes_before_height(width, height, kind):
    assert image_size(image_bytes(0, (width, height), kind)) == (width, height)


def is_complete(data: bytes) -> bool:
    return isinstance(image_size(data), ImageSize)


@pytest.mark.parametrize("name", [name for name in JPEGS if name != "with-profile"])
def test_a_jpeg_cut_anywhere_is_never_complete(name):
    data = JPEGS[name]
    assert data.endswith(b"\xff\xd9")
    assert [stop for stop in range(len(data)) if is_complete(data[:stop])] == []


@given(st.integers(0, len(JPEGS["with-profile"]) - 1))
def test_a_jpeg_with_end_markers_in_a_long_header_is_never_complete_when_cut(stop):
    assert not is_complete(JPEGS["with-profile"][:stop])


@pytest.mark.parametrize("name", list(PNGS))
def test_a_png_cut_anywhere_is_never_complete(name):
    assert [stop for stop in range(len(PNGS[name])) if is_complete(PNGS[name][:stop])] == []


@given(st.sampled_from([*JPEGS.values(), *PNGS.values()]), st.binary(max_size=40), st.data())
def test_bytes_behind_the_end_are_harmless_and_a_cut_among_them_too(data, junk, draws):
    stop = draws.draw(st.integers(0, len(junk)))
    assert image_size(data + junk[:stop]) == image_size(data)


@given(st.sampled_from([JPEGS["baseline"], PNGS["rgb"]]), st.data())
def test_a_file_whose_end_was_never_written_is_truncated(data, draws):
    """What a crash leaves of a file whose room was set aside: its beginning, then zeros."""
    stop = draws.draw(st.integers(64, len(data) - 2))
    found = image_size(data[:stop] + bytes(len(data) - stop))
    assert isinstance(found, Unusable)


def test_an_end_marker_inside_a_segment_behind_the_frame_header_is_no_end():
    data = JPEGS["baseline"]
    scan = data.index(b"\xff\xda")
    data = data[:scan] + b"\xff\xfe\x00\x04\xff\xd9" + data[scan:]  # a comment that holds FF D9
    assert is_complete(data)
    assert [stop for stop in range(len(data)) if is_complete(data[:stop])] == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("cut", ["start", "half", "last-byte"])
def test_a_cut_image_is_called_truncated(kind, cut):
    data = image_bytes(0, kind=kind)
    stop = {"start": 12, "half": len(data) // 2, "last-byte": len(data) - 1}[cut]
    assert image_size(data[:stop]).reason is Reason.TRUNCATED


def jpeg_of_size(width: int, height: int) -> bytes:
    """Return a small JPEG whose header claims another size."""
    data = bytearray(image_bytes(0))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_of_size(width: int, height: int) -> bytes:
    data = bytearray(image_bytes(0, kind="PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("make", [jpeg_of_size, png_of_size])
def test_a_header_that_claims_more_pixels_than_any_crop_has_is_too_large(make):
    assert image_size(make(60_000, 60_000)).reason is Reason.TOO_LARGE
    assert "60000 × 60000" in image_size(make(60_000, 60_000)).detail


def test_the_bound_on_pixels_is_the_one_at_which_pillow_warns():
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    assert image_size(png_of_size(MAX_PIXELS, 1)) == (MAX_PIXELS, 1)
    assert image_size(png_of_size(MAX_PIXELS + 1, 1)).reason is Reason.TOO_LARGE
    assert image_size(png_of_size(2**32 - 1, 2**32 - 1)).reason is Reason.TOO_LARGE


@pytest.mark.parametrize("make", [jpeg_of_size, png_of_size])
@pytest.mark.parametrize("size", [(0, 0), (0, 9), (9, 0)])
def test_a_picture_without_pixels_is_corrupt(make, size):
    assert image_size(make(*size)).reason is Reason.CORRUPT


def test_no_bytes_are_empty():
    assert image_size(b"").reason is Reason.EMPTY


@pytest.mark.parametrize(
    "data",
    [
        b"text\n",
        b" " + image_bytes(0),
        b"GIF89a" + bytes(40),
        b"BM" + bytes(60),
        b"RIFF\0\0\0\0WEBPVP8 " + bytes(40),
        b"<svg/>",
        b"\0" * 100,
        b"\xff\xd8",
        b"\x89PNG\n\x1a\n" + bytes(40),  # what a transfer as text makes of a PNG
        b"\xef\xbb\xbf",
    ],
)
def test_other_bytes_are_no_image(data):
    assert image_size(data).reason is Reason.NOT_AN_IMAGE


def test_a_jpeg_whose_header_makes_no_sense_is_corrupt():
    data = bytearray(image_bytes(0))
    data[20] = 0x00  # where the second marker should be
    assert image_size(bytes(data)).reason is Reason.CORRUPT


def test_sizes_are_read_in_one_way_from_a_header_that_makes_no_sense():
    data = JPEGS["baseline"]
    data = data[:2] + b"\xff\xe0\x00\x02" + b"\x00\xc0\x00\x11\x08" + b"\xff" * 12 + data[2:]  # no frame: no FF
    assert image_size(data) == (Reason.CORRUPT, "no JPEG marker at byte 6")
    with pytest.raises(OSError, match="no size in the JPEG header"):
        decode_rgb(data)


def test_fill_bytes_before_a_marker_are_allowed():
    data = image_bytes(0)
    assert image_size(data[:2] + b"\xff\xff\xff" + data[2:]) == (24, 48)


def test_a_length_that_leads_nowhere_ends_the_search():
    assert not is_complete(b"\xff\xd8\xff\xe0\x00\x00" * 50)
    assert not is_complete(b"\xff\xd8" + b"\xff" * 1000)


@settings(max_examples=300)
@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"]), st.binary(max_size=80))
def test_no_bytes_raise(start, tail):
    found = image_size(start + tail)
    assert isinstance(found, ImageSize | Unusable)


@settings(max_examples=200)
@given(st.sampled_from([JPEGS["baseline"], PNGS["rgb"]]), st.data())
def test_no_turned_byte_of_a_header_raises_or_gives_a_size_beyond_the_bound(data, draws):
    turned = bytearray(data)
    turned[draws.draw(st.integers(0, 200))] = draws.draw(st.integers(0, 255))
    found = image_size(bytes(turned))
    if isinstance(found, ImageSize):
        assert 0 < found.width * found.height <= MAX_PIXELS


def test_real_crops_are_complete_until_they_are_cut(real_crops):
    for path in sorted(real_crops.glob("query/*.jpg"))[:3]:
        data = path.read_bytes()
        assert image_size(data) == Image.open(io.BytesIO(data)).size
        end = data.rindex(b"\xff\xd9") + 2
        assert [stop for stop in range(end) if is_complete(data[:stop])] == []


# ---------------------------------------------------------------- pixels


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@given(st.integers(0, 999), st.integers(1, 90), st.integers(1, 90))
def test_decoded_pixels_are_those_of_pillow(seed: int, width: int, height: int):
    for kind in ("JPEG", "PNG"):
        data = image_bytes(seed, (width, height), kind)
        pixels = decode_rgb(data)
        assert pixels.shape == (height, width, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_spaces_become_rgb(mode: str):
    file = io.BytesIO()
    Image.new(mode, (8, 12), 90 if mode == "L" else (0, 128, 255, 0)).save(file, "JPEG")
    np.testing.assert_allclose(decode_rgb(file.getvalue()), pillow(file.getvalue()), atol=2)


def test_what_nobody_can_decode_is_an_os_error():
    for data, why in ((b"\xff\xd8\xff nothing", "no size"), (b"nothing", "cannot identify"), (b"", "cannot identify")):
        with pytest.raises(OSError, match=why):
            decode_rgb(data)


@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])  # Pillow warns of the first, refuses the second
@pytest.mark.parametrize("make", [jpeg_of_size, png_of_size])
def test_no_memory_is_taken_for_more_pixels_than_any_crop_has(make, size: tuple[int, int]) -> None:
    with pytest.raises(OSError, match=r"more than 89,478,485 in all"):
        decode_rgb(make(*size))


def test_other_formats_are_bounded_too() -> None:
    header = b"BM" + struct.pack("<IIIIiiHH", 1 << 20, 0, 54, 40, 60_000, 60_000, 1, 24) + bytes(100)
    with pytest.raises(OSError, match="decompression bomb"):
        decode_rgb(header)


@pytest.mark.parametrize("name", ["baseline", "progressive", "grey", "with-thumbnail", "restart-markers"])
def test_a_jpeg_damaged_in_its_scan_is_an_os_error_not_grey(name: str) -> None:
    data = JPEGS[name]
    middle = (data.rindex(b"\xff\xda") + len(data)) // 2
    damaged = data[:middle] + b"\xff\xd9" + data[middle:]  # as if the picture ended there
    assert pillow(damaged).shape == (48, 24, 3)
    with pytest.raises(OSError, match="JPEG"):
        decode_rgb(damaged)
    assert "does not decode" in decoding_error(damaged, ImageSize(24, 48))


def test_real_crops_decode_to_the_pixels_of_pillow(real_crops):
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
