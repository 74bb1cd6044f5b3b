"""Images as bytes: what the header tells, and the pixels."""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from entire_id.records import Reason

__all__ = ["MAX_PIXELS", "ImageSize", "RgbImage", "Unusable", "decode_rgb", "decoding_error", "image_size"]

RgbImage = npt.NDArray[np.uint8]
"""(height, width, 3) uint8, RGB."""

MAX_PIXELS = 89_478_485
"""More than this Pillow calls a decompression bomb (`PIL.Image.MAX_IMAGE_PIXELS`)."""

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_HEADER, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IHDR", b"IEND\xaeB`\x82"
# ITU-T T.81, table B.1: start-of-frame markers are C0-CF but for DHT (C4), JPG (C8) and DAC (CC) …
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN_MARKER = 0xDA
_SOUGHT = _FRAME_MARKERS | {_SCAN_MARKER}
_NO_MARKER, _NO_MORE = -1, -2
# … and TEM (01) and RST0-RST7 (D0-D7) stand alone, without a length.
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})
# T.81 B.1.1.4: FF, marker, length (2); B.2.2: in a frame, precision (1), height (2) and width (2) follow.
_SEGMENT = struct.Struct(">BBH").unpack_from
_FRAME = struct.Struct(">2xHxHH").unpack_from  # length, height, width
_PNG_SIZE = struct.Struct(">16xII").unpack_from  # of the IHDR chunk, which comes first


class ImageSize(NamedTuple):
    """Width and height in px, as the header states them."""

    width: int
    height: int


class Unusable(NamedTuple):
    """Why an image cannot be packed."""

    reason: Reason
    detail: str


def image_size(data: bytes) -> ImageSize | Unusable:
    """Return the size of a complete JPEG or PNG, else why it cannot be packed.

    The pixels are not decoded: a picture whose header and end are right passes.
    """
    if not data:
        return Unusable(Reason.EMPTY, "")
    if data.startswith(_JPEG_START):
        size = _jpeg_size(data)
    elif data.startswith(_PNG_START):
        size = _png_size(data)
    else:
        return Unusable(Reason.NOT_AN_IMAGE, f"starts with {data[:8]!r}")
    if isinstance(size, ImageSize) and size.width * size.height > MAX_PIXELS:
        return Unusable(Reason.TOO_LARGE, f"{size.width} × {size.height} px, more than {MAX_PIXELS:,} in all")
    return size


def _jpeg_size(data: bytes) -> ImageSize | Unusable:
    size: ImageSize | None = None
    marker, position = _seek(data, 2)
    while marker in _FRAME_MARKERS:
        length, height, width = _FRAME(data, position)
        size = ImageSize(width, height)
        marker, position = _seek(data, position + 2 + length)
    if marker == _NO_MARKER:
        return Unusable(Reason.CORRUPT, f"no JPEG marker at byte {position}")
    if marker == _NO_MORE:
        return Unusable(Reason.TRUNCATED, "ends within the JPEG header")
    if size is None or not size.width or not size.height:
        return Unusable(Reason.CORRUPT, "no size in the JPEG header")
    # Entropy-coded bytes never hold FF D9 (T.81 B.1.1.5): an end marker behind the first scan is the picture's own.
    if not data.endswith(_JPEG_END) and data.rfind(_JPEG_END) < position:
        return Unusable(Reason.TRUNCATED, "no end-of-image marker")
    return size


def _seek(data: bytes, position: int) -> tuple[int, int]:
    """Return the marker of the next frame or scan from the segment at `position` on, and where it is.

    `_NO_MARKER` where something else comes first, `_NO_MORE` where the bytes end before.
    """
    stop = len(data) - 8
    while position < stop:
        start, marker, length = _SEGMENT(data, position)
        if start != 0xFF:
            return _NO_MARKER, position
        if marker in _SOUGHT:
            return marker, position
        position += 1 if marker == 0xFF else 2 if marker in _BARE_MARKERS else 2 + length  # FF: a fill byte
    return _NO_MORE, position


def _png_size(data: bytes) -> ImageSize | Unusable:
    if len(data) < 33:
        return Unusable(Reason.TRUNCATED, "ends within the PNG header")
    if data[12:16] != _PNG_HEADER:
        return Unusable(Reason.CORRUPT, f"the first PNG chunk is {data[12:16]!r}")
    width, height = _PNG_SIZE(data)
    if not width or not height:
        return Unusable(Reason.CORRUPT, f"{width} × {height} px")
    if _PNG_END not in data:
        return Unusable(Reason.TRUNCATED, "no IEND chunk")
    return ImageSize(width, height)


def decode_rgb(data: bytes) -> RgbImage:
    """Return the pixels of a JPEG or PNG, (height, width, 3) uint8 RGB.

    simplejpeg decodes ordinary JPEG, with the same result as Pillow but about three times faster, and refuses damaged
    scans, which Pillow would fill with grey; Pillow decodes everything else. Orientation tags are not applied.

    Raises:
        OSError: it does not decode, or its header claims more than `MAX_PIXELS`.
    """
    if data.startswith(_PNG_START) and len(data) >= 24:
        _check_pixels(*_PNG_SIZE(data))
    if not data.startswith(_JPEG_START):
        return _decode_by_pillow(data)
    _check_pixels(*_frame_size(data))
    try:
        pixels: RgbImage = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        if "color conversion" in str(error).lower():  # CMYK and the like
            return _decode_by_pillow(data)
        raise OSError(str(error)) from error
    return pixels


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise OSError(f"{width} × {height} px, more than {MAX_PIXELS:,} in all")


def _frame_size(data: bytes) -> ImageSize:
    """Return the size that a JPEG's header states. No more is looked at: this is done for every crop."""
    marker, position = _seek(data, 2)
    if marker not in _FRAME_MARKERS:
        raise OSError("no size in the JPEG header")
    _, height, width = _FRAME(data, position)
    return ImageSize(width, height)


def _decode_by_pillow(data: bytes) -> RgbImage:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to white
                grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # a broken PNG chunk; any other format
        raise OSError(f"broken image: {error}") from error


def decoding_error(data: bytes, size: ImageSize) -> str:
    """Return why an image does not decode to the size its header states, `""` if it does."""
    try:
        height, width = decode_rgb(data).shape[:2]
    except OSError as error:
        return f"does not decode: {error}"
    return "" if (width, height) == size else f"decodes to {width} × {height} px"
