"""Pictures by recipe: handwritten digits from left to right, or coloured shapes. 56x56 pixels, 112x56 for strings.

    {"digits": [17, 4003], "seed": 5, "width": 112, "ink": "white", "ground": "black"}
    {"digits": [17], "seed": 5, "width": 56, "ink": "white", "ground": "black", "warp": true}
    {"shape": "star", "colour": "red", "count": 3, "style": "striped", "seed": 5}

"digits" are places in `packages.handwriting`; with "warp" each is bent as if another hand had written it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from examples.omni_tiny.chance import generator
from examples.omni_tiny.files import recipe_name, whole

SIDE = 56
RGB = {
    "red": (220, 30, 30), "blue": (40, 70, 230), "green": (30, 160, 50), "yellow": (240, 215, 30),
    "purple": (150, 50, 180), "orange": (250, 130, 20), "white": (255, 255, 255), "black": (0, 0, 0),
    "grey": (120, 120, 120), "cream": (250, 245, 225), "navy": (15, 20, 60),
}  # fmt: skip
INKS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
STYLES = ("filled", "outlined", "striped", "bordered")
HELD_OUT_STYLE = "dotted"
_BENT = 1.1  # pixels
_PEN = (0.25, 0.5)  # how much of a blurred stroke's edge is no ink any more
_FINE = 4  # shapes are drawn this many times larger, then made small, which smooths their edges


def picture_path(recipe: Mapping[str, Any]) -> str:
    """Where the picture of a recipe lies, from the folder of the data."""
    kind = "digits" if "digits" in recipe else "shapes"
    name = recipe_name(recipe)
    return f"pictures/{kind}/{name[:2]}/{name}.png"


def make_picture(recipe: Mapping[str, Any], folder: Path, handwriting: np.ndarray) -> None:
    with whole(folder / picture_path(recipe)) as partial:
        Image.fromarray(draw(recipe, handwriting)).save(partial, format="PNG")


def draw(recipe: Mapping[str, Any], handwriting: np.ndarray) -> np.ndarray:
    """uint8 [56, width, 3]."""
    return _draw_digits(recipe, handwriting) if "digits" in recipe else _draw_shapes(recipe)


def _draw_digits(recipe: Mapping[str, Any], handwriting: np.ndarray) -> np.ndarray:
    rng, width, count = generator(recipe["seed"], "drawing"), recipe["width"], len(recipe["digits"])
    coverage = np.zeros((SIDE, width), np.float32)
    cell = width / count
    most = min(1.7, cell / 24)  # a digit is about 20 of its 28 pixels wide
    for place, digit in enumerate(recipe["digits"]):
        scale = float(rng.uniform(0.8, 1.0)) * most
        room = max(cell - 20 * scale, 0) / 2
        x = cell * (place + 0.5) + float(rng.uniform(-room, room)) * 0.8
        y = SIDE / 2 + float(rng.uniform(-1, 1)) * max(SIDE / 2 - 12 * scale, 0) * 0.8
        written = warped_digit(handwriting[digit], rng) if recipe.get("warp") else handwriting[digit]
        drawn = changed_digit(written, rng, scale, (x, y), (SIDE, width))
        coverage = np.maximum(coverage, drawn)
    return paint(coverage, recipe["ink"], recipe["ground"], rng)


def warped_digit(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A handwritten digit uint8 [28, 28] bent by a smooth random field, with a thicker or thinner pen.

    Elastic distortions: Simard, Steinkraus and Platt 2003.
    """
    coarse = rng.normal(0, _BENT, (2, 5, 5)).astype(np.float32)
    field = [np.asarray(Image.fromarray(each).resize(digit.shape, Image.Resampling.BICUBIC)) for each in coarse]
    y, x = np.mgrid[: digit.shape[0], : digit.shape[1]]
    bent = ndimage.map_coordinates(digit.astype(np.float32) / 255, (y + field[0], x + field[1]), order=1)
    pen = rng.uniform(*_PEN)
    drawn = (ndimage.gaussian_filter(bent, 0.7) - pen) * 2.2 + 0.5
    return (np.clip(drawn, 0, 1) * 255).astype(np.uint8)


def changed_digit(
    digit: np.ndarray, rng: np.random.Generator, scale: float, centre: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    """A handwritten digit, turned and slanted a little, `scale` times as large: coverage float32 [H, W], 0 to 1."""
    angle, slant = float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.15, 0.15))
    stretch = float(rng.uniform(0.9, 1.1))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(scale * turn @ np.array([[stretch, slant], [0, 1 / stretch]]))
    offset = np.array([14.0, 14.0]) - inverse @ np.array(centre)  # output pixel -> pixel of the digit
    values = (*inverse[0], offset[0], *inverse[1], offset[1])
    image = Image.fromarray(digit).transform(
        (size[1], size[0]), Image.Transform.AFFINE, values, Image.Resampling.BICUBIC
    )
    return np.asarray(image, np.float32) / 255


def paint(coverage: np.ndarray, ink: str, ground: str, rng: np.random.Generator) -> np.ndarray:
    """Ink on a ground, both a little off their colour, with some grain: uint8 [H, W, 3]."""
    inks, grounds = (np.array(RGB[name]) + rng.normal(0, 8, 3) for name in (ink, ground))
    mixed = coverage[..., None] * inks + (1 - coverage[..., None]) * grounds
    return np.clip(mixed + rng.normal(0, 4, (*coverage.shape, 1)), 0, 255).astype(np.uint8)


def _draw_shapes(recipe: Mapping[str, Any]) -> np.ndarray:
    rng, count = generator(recipe["seed"], "drawing"), recipe["count"]
    ground = tuple(int(x) for x in np.clip(np.array(RGB[recipe["ground"]]) + rng.normal(0, 6, 3), 0, 255))
    colour = tuple(int(x) for x in np.clip(np.array(RGB[recipe["colour"]]) + rng.normal(0, 12, 3), 0, 255))
    cells = [(0.5, 0.5)] if count == 1 else [(x / 3 + 1 / 6, y / 3 + 1 / 6) for x in range(3) for y in range(3)]
    size = float(rng.uniform(0.5, 0.9)) if count == 1 else float(rng.uniform(0.23, 0.3))
    slack = (1 - size) / 2 if count == 1 else (1 / 3 - size) / 2
    chosen = rng.permutation(len(cells))[:count]
    centres = [np.array(cells[cell]) + rng.uniform(-slack, slack, 2) * 0.9 for cell in chosen]
    large = SIDE * _FINE
    outlines = [_outline(recipe["shape"], float(rng.uniform(-0.15, 0.15))) * size / 2 + centre for centre in centres]
    pixels = _in_style(recipe["style"], np.array(outlines) * large, size * large, large, colour, ground)
    small = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
    return np.clip(small + rng.normal(0, 3, (SIDE, SIDE, 1)), 0, 255).astype(np.uint8)


def _in_style(
    style: str, outlines: np.ndarray, size: float, side: int, colour: tuple[int, ...], ground: tuple[int, ...]
) -> np.ndarray:
    """Shapes [N, corners, 2] about `size` across, uint8 [side, side, 3]."""
    body, edge = (Image.new("1", (side, side)) for _ in range(2))
    for outline in outlines:
        points = [tuple(point) for point in outline]
        ImageDraw.Draw(body).polygon(points, fill=1)
        ImageDraw.Draw(edge).line([*points, points[0], points[1]], fill=1, width=max(round(size / 8), 8), joint="curve")
    inside, rim = np.asarray(body), np.asarray(edge) & np.asarray(body)
    y, x = np.mgrid[0:side, 0:side]
    step = max(size / 5, 12)
    coloured = {
        "filled": inside,
        "bordered": inside,
        "outlined": rim,
        "striped": rim | (inside & (((x + y) % step) < step / 2)),
        "dotted": rim | (inside & (np.hypot(x % step - step / 2, y % step - step / 2) < step / 3)),
    }[style]
    pixels = np.where(coloured[..., None], np.array(colour, np.uint8), np.array(ground, np.uint8))
    if style == "bordered":
        pixels[rim] = np.array(colour) // 3
    return pixels


def _outline(shape: str, angle: float) -> np.ndarray:
    """Corners [N, 2] about the origin, at most about 1 away from it, turned by `angle`."""
    if shape == "circle":
        turns = np.arange(48) * np.pi / 24
        points = np.stack([np.cos(turns), np.sin(turns)], 1)
    elif shape == "square":
        points = 0.8 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    elif shape == "diamond":
        points = np.array([(0, -1), (0.7, 0), (0, 1), (-0.7, 0)], float)
    elif shape == "triangle":
        points = np.array([(0, -0.95), (0.95, 0.75), (-0.95, 0.75)], float)
    elif shape == "star":
        turns = -np.pi / 2 + np.arange(10) * np.pi / 5
        points = np.stack([np.cos(turns), np.sin(turns)], 1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    else:
        assert shape == "cross", shape
        a = 0.3
        points = np.array(
            [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
        )
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T
