"""Places and cameras, drawn: the backdrop behind a figure, and what a camera makes of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from entire_id.sources.drawn.people import RGB

__all__ = ["CONTINENTS", "NUM_CAMERAS", "SCENE_PX", "View", "develop", "make_views", "soft_shadow"]

NUM_CAMERAS = 37
"""As many as ENTIRe-ID has."""

CONTINENTS = ("asia", "europe", "north_america", "south_america")
"""The toy's own choice; nobody has said on which continents the real cameras hang."""

SCENE_PX = (640, 320)
"""Width and height of a backdrop. The ground begins at `_HORIZON` of its height."""

_HORIZON = 0.52
_MEDIAN_HEIGHT_PX = 170.0  # published sample crops: 62 to 343 px tall, median 162
_GRAIN_PX = (256, 448)  # larger than the largest crop
_NOISE_SIGMA = 32.0
_HAZE_COLOUR, _HAZE = (226, 210, 188), 0.71  # backdrops are pale, so that people stand out
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True)
class View:
    """One camera: where it hangs and what it does to light.

    Attributes:
        camid: camera number.
        continent: one of `CONTINENTS`.
        scene: name of the place.
        backdrop: the place without people, `SCENE_PX`.
        height_px: usual height of a crop, pixels.
        tilt: how far it looks down: rise on the picture per unit of distance.
        light: side that the light comes from, -1 left … 1 right.
        colours: 3 x 4 colour matrix: cast and saturation.
        gain: brightness factor.
        gamma: exponent of the tone curve, below 1 lifts the shadows.
        contrast: slope about middle grey.
        blur: radius, as a share of the crop's height.
        grain: noise to add, RGB around 128, larger than any crop.
        quality: JPEG quality, 1 to 95.
    """

    camid: int
    continent: str
    scene: str
    backdrop: Image.Image
    height_px: float
    tilt: float
    light: float
    colours: tuple[float, ...]
    gain: float
    gamma: float
    contrast: float
    blur: float
    grain: Image.Image
    quality: int


def make_views(rngs: list[np.random.Generator]) -> tuple[View, ...]:
    """Draw the cameras, one for each generator.

    Distances are spread evenly over the cameras, so that crops have their usual sizes whatever the seed.
    """
    ranks = rngs[0].permutation(len(rngs))
    noise = _noise(rngs[0])
    spread = np.exp(np.linspace(-0.62, 0.62, len(rngs)))
    return tuple(
        _view(camid, float(_MEDIAN_HEIGHT_PX * spread[rank]), bool(rank % 12 == 5), noise, rng)
        for camid, (rank, rng) in enumerate(zip(ranks, rngs, strict=True))
    )


def _view(camid: int, height_px: float, night: bool, noise: Image.Image, rng: np.random.Generator) -> View:
    scene = str(rng.choice(list(_SCENES)))
    saturation = rng.uniform(0.3, 0.6) if night else rng.uniform(0.85, 1.15)
    warmth, tint = rng.uniform(-0.035, 0.035), rng.uniform(-0.015, 0.015)
    cast = np.array([1 + warmth, 1 + tint, 1 - warmth])
    rows = cast[:, None] * (saturation * np.eye(3) + (1 - saturation) * _LUMA)
    return View(
        camid=camid,
        continent=CONTINENTS[camid % len(CONTINENTS)],
        scene=scene,
        backdrop=_backdrop(scene, rng),
        height_px=height_px,
        tilt=float(rng.uniform(0.06, 0.34)),
        light=float(rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 1.0)),
        colours=tuple(float(value) for row in rows for value in (*row, 0.0)),
        gain=float(rng.uniform(0.55, 0.7) if night else np.exp(rng.uniform(-0.09, 0.07))),
        gamma=float(np.exp(rng.uniform(-0.06, 0.06))),
        contrast=float(rng.uniform(0.92, 1.08)),
        blur=float(rng.choice([0.0, 0.0, 0.003, 0.006])),
        grain=_scaled(noise, float(rng.uniform(0.8, 2.2) + 3.0 * night)),
        quality=int(rng.integers(70, 93)),
    )


def _noise(rng: np.random.Generator) -> Image.Image:
    """Noise around 128 with a standard deviation of `_NOISE_SIGMA`: mostly grey, a little coloured."""
    width, height = _GRAIN_PX
    grey = 0.9 * rng.standard_normal((height, width, 1), dtype=np.float32)
    tinted = grey + 0.44 * rng.standard_normal((height, width, 3), dtype=np.float32)
    return Image.fromarray(np.clip(128.5 + _NOISE_SIGMA * tinted, 0, 255).astype(np.uint8))


def _scaled(noise: Image.Image, sigma: float) -> Image.Image:
    return noise.point([round(128 + (value - 128) * sigma / _NOISE_SIGMA) for value in range(256)] * 3)


def develop(picture: Image.Image, view: View, light: float, rng: np.random.Generator) -> Image.Image:
    """Return `picture` as the camera records it: cast, tone curve, blur and grain.

    Args:
        picture: RGB crop in true colours.
        view: the camera.
        light: brightness of the moment, a factor on the camera's gain.
        rng: places the grain.
    """
    tones = (np.arange(256) / 255 * view.gain * light) ** view.gamma
    curve = np.clip(255 * (0.45 + view.contrast * (tones - 0.45)), 0, 255).astype(np.uint8)
    developed = Image.fromarray(curve[np.asarray(picture.convert("RGB", view.colours))])
    if view.blur:
        developed = developed.filter(ImageFilter.BoxBlur(view.blur * picture.height))
    left, top = (int(rng.integers(0, outer - inner)) for outer, inner in zip(_GRAIN_PX, picture.size, strict=True))
    grain = view.grain.crop((left, top, left + picture.width, top + picture.height))
    return ImageChops.add(developed, grain, 1.0, -128)


def soft_shadow() -> Image.Image:
    """Return a round shadow as a mask, 64 x 64: dark in the middle, fading to nothing."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    return Image.fromarray((150 * np.clip(1 - np.hypot(x, y), 0, 1) ** 0.8).astype(np.uint8))


# --- places -----------------------------------------------------------------------------------------------------------


def _backdrop(scene: str, rng: np.random.Generator) -> Image.Image:
    width, height = SCENE_PX
    image = Image.new("RGB", SCENE_PX)
    draw = ImageDraw.Draw(image)
    horizon = round(height * _HORIZON)
    _SCENES[scene](draw, horizon, rng)
    shade = np.linspace(0.92, 1.08, width, dtype=np.float32)  # light falls in from one side
    hazy = Image.blend(image, Image.new("RGB", SCENE_PX, _HAZE_COLOUR), _HAZE)
    lit = np.asarray(hazy) * (shade if rng.random() < 0.5 else shade[::-1])[None, :, None]
    return Image.fromarray(np.minimum(lit, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(1))


def _gradient(draw: ImageDraw.ImageDraw, top: int, bottom: int, start: RGB, stop: RGB) -> None:
    for y in range(top, bottom):
        share = (y - top) / max(1, bottom - top)
        row = tuple(round(a + (b - a) * share) for a, b in zip(start, stop, strict=True))
        draw.line((0, y, SCENE_PX[0], y), fill=row)


def _floor(draw: ImageDraw.ImageDraw, horizon: int, colour: RGB, step: int, line: int) -> None:
    """Ground with joints that run to a vanishing point; `step` pixels apart at the wall, `line` darker."""
    width, height = SCENE_PX
    _gradient(draw, horizon, height, _tone(colour, -14), _tone(colour, 12))
    joint = _tone(colour, line)
    for x in range(-width, 2 * width, step):
        draw.line((x, horizon, width / 2 + (x - width / 2) * 2.2, height), fill=joint)
    depth = 9.0
    y = horizon + depth
    while y < height:
        draw.line((0, y, width, y), fill=joint)
        depth *= 1.28
        y += depth


def _tone(colour: RGB, change: int) -> RGB:
    red, green, blue = (max(0, min(255, value + change)) for value in colour)
    return red, green, blue


def _pick(rng: np.random.Generator, *colours: RGB) -> RGB:
    return _tone(colours[int(rng.integers(len(colours)))], int(rng.integers(-10, 11)))


def _street(draw: ImageDraw.ImageDraw, horizon: int, rng: np.random.Generator) -> None:
    wall = _pick(rng, (168, 122, 98), (186, 176, 158), (142, 138, 136), (196, 170, 128))
    draw.rectangle((0, 0, SCENE_PX[0], horizon), fill=wall)
    for row, y in enumerate(range(0, horizon, 9)):
        draw.line((0, y, SCENE_PX[0], y), fill=_tone(wall, -12))
        for x in range(row % 2 * 11, SCENE_PX[0], 22):
            draw.line((x, y, x, y + 9), fill=_tone(wall, -12))
    for x in range(int(rng.integers(0, 60)), SCENE_PX[0], 130):
        draw.rectangle((x, 14, x + 56, horizon - 58), fill=(74, 86, 98), outline=(222, 220, 214), width=4)
        draw.line((x + 28, 14, x + 28, horizon - 58), fill=(222, 220, 214), width=3)
    _floor(draw, horizon, _pick(rng, (156, 154, 150), (170, 162, 148)), 46, -16)
    draw.rectangle((0, horizon, SCENE_PX[0], horizon + 7), fill=_tone(wall, -48))


def _park(draw: ImageDraw.ImageDraw, horizon: int, rng: np.random.Generator) -> None:
    _gradient(draw, 0, horizon, (176, 200, 222), (214, 222, 222))
    leaf = _pick(rng, (92, 122, 72), (120, 132, 70), (154, 122, 62))
    for x in range(0, SCENE_PX[0], 74):
        draw.rectangle((x + 26, 60, x + 37, horizon), fill=(98, 76, 58))
        for _ in range(9):
            dx, dy, r = rng.uniform(-34, 70), rng.uniform(-10, 78), rng.uniform(18, 36)
            draw.ellipse((x + dx - r, dy - r, x + dx + r, dy + r), fill=_tone(leaf, int(rng.integers(-18, 19))))
    draw.rectangle((0, horizon - 34, SCENE_PX[0], horizon), fill=_tone(leaf, -26))
    _gradient(draw, horizon, SCENE_PX[1], _tone(leaf, 8), _tone(leaf, 26))
    draw.rectangle((0, horizon + 46, SCENE_PX[0], SCENE_PX[1]), fill=_pick(rng, (178, 164, 140), (160, 158, 152)))


def _shop(draw: ImageDraw.ImageDraw, horizon: int, rng: np.random.Generator) -> None:
    draw.rectangle((0, 0, SCENE_PX[0], horizon), fill=_pick(rng, (206, 202, 192), (180, 186, 190)))
    goods = ((196, 88, 76), (222, 178, 88), (92, 138, 172), (128, 158, 104), (232, 226, 214), (150, 112, 150))
    for y in range(8, horizon - 20, 38):
        x = 0.0
        while x < SCENE_PX[0]:
            wide, tall = rng.uniform(8, 20), rng.uniform(16, 30)
            draw.rectangle((x, y + 32 - tall, x + wide, y + 32), fill=_pick(rng, *goods))
            x += wide + 2
        draw.rectangle((0, y + 32, SCENE_PX[0], y + 37), fill=(120, 114, 108))
    _floor(draw, horizon, _pick(rng, (206, 200, 188), (188, 190, 192)), 58, -20)


def _station(draw: ImageDraw.ImageDraw, horizon: int, rng: np.random.Generator) -> None:
    wall = _pick(rng, (212, 212, 204), (176, 188, 190), (204, 194, 170))
    draw.rectangle((0, 0, SCENE_PX[0], horizon), fill=wall)
    for x in range(0, SCENE_PX[0], 64):
        draw.line((x, 0, x, horizon), fill=_tone(wall, -22), width=2)
    for x in range(int(rng.integers(0, 90)), SCENE_PX[0], 190):
        poster = _pick(rng, (178, 84, 70), (72, 108, 150), (224, 182, 92), (86, 136, 108))
        draw.rectangle((x, 36, x + 62, 122), fill=poster, outline=(70, 72, 76), width=3)
        draw.rectangle((x + 12, 52, x + 50, 78), fill=_tone(poster, 52))
    stripe = _pick(rng, (52, 92, 148), (172, 62, 56), (60, 126, 92))
    draw.rectangle((0, 10, SCENE_PX[0], 24), fill=stripe)
    _floor(draw, horizon, _pick(rng, (150, 150, 148), (134, 130, 126)), 40, -18)
    draw.rectangle((0, SCENE_PX[1] - 44, SCENE_PX[0], SCENE_PX[1] - 32), fill=(212, 178, 74))


def _plaza(draw: ImageDraw.ImageDraw, horizon: int, rng: np.random.Generator) -> None:
    _gradient(draw, 0, horizon, _pick(rng, (150, 186, 222), (190, 196, 204)), (226, 226, 220))
    x = 0.0
    while x < SCENE_PX[0]:
        wide, top = rng.uniform(50, 120), rng.uniform(0, horizon * 0.5)
        front = _pick(rng, (170, 164, 158), (190, 170, 146), (146, 152, 162), (178, 144, 126))
        draw.rectangle((x, top, x + wide, horizon), fill=front)
        for wx in np.arange(x + 8, x + wide - 8, 18):
            for wy in np.arange(top + 10, horizon - 22, 24):
                draw.rectangle((wx, wy, wx + 8, wy + 13), fill=_tone(front, -44))
        x += wide
    _floor(draw, horizon, _pick(rng, (192, 184, 172), (172, 170, 168), (186, 164, 146)), 34, -14)


def _shore(draw: ImageDraw.ImageDraw, horizon: int, rng: np.random.Generator) -> None:
    snow = rng.random() < 0.5
    far: RGB = (150, 162, 176) if snow else (92, 146, 170)
    ground: RGB = (228, 232, 238) if snow else (222, 200, 162)
    _gradient(draw, 0, horizon - 50, (164, 196, 224), (222, 230, 234))
    draw.rectangle((0, horizon - 50, SCENE_PX[0], horizon), fill=far)
    for x in range(-60, SCENE_PX[0], 110):
        peak = horizon - 50 - rng.uniform(20, 70)
        draw.polygon([(x, horizon - 50), (x + 90, peak), (x + 190, horizon - 50)], fill=_tone(far, -16))
    _gradient(draw, horizon, SCENE_PX[1], _tone(ground, -10), ground)
    for _ in range(160):
        px, py = rng.uniform(0, SCENE_PX[0]), rng.uniform(horizon + 4, SCENE_PX[1])
        draw.ellipse((px, py, px + 9, py + 2), fill=_tone(ground, -16))


_SCENES: dict[str, Callable[[ImageDraw.ImageDraw, int, np.random.Generator], None]] = {
    "park": _park,
    "plaza": _plaza,
    "shop": _shop,
    "shore": _shore,
    "station": _station,
    "street": _street,
}
