"""Draws lines and discs on 8-bit images for Pathfinder, and shrinks images with a Lanczos filter.

Images are drawn at `FINE` times their size and shrunk as by Pillow's LANCZOS filter, which smooths edges.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FINE = 2
"""The scale at which images are drawn before they are shrunk."""

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def line(size: int, start: tuple[int, int], end: tuple[int, int], width: int) -> Image:
    """Returns a square image with a line of value 255 from `start` to `end`, both (y, x) and inclusive.

    `width` is 1 or 3 pixels. A line of width 1 is drawn by Bresenham's algorithm. A line of width 3 is a parallelogram.
    Its long sides are one pixel from the line, and its corners are rounded to whole pixels.
    """
    image = np.zeros((size, size), dtype=np.uint8)
    if width == 1:
        for y, x in _bresenham(start, end):
            image[y, x] = 255
        return image
    dy, dx = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dy, dx)
    oy, ox = _round(dx / length), -_round(dy / length)
    corners = [(start[0] - oy, start[1] - ox), (end[0] - oy, end[1] - ox)]
    corners += [(end[0] + oy, end[1] + ox), (start[0] + oy, start[1] + ox)]
    sides = list(zip(corners, corners[1:] + corners[:1], strict=True))
    for y in range(min(y for y, _ in corners), max(y for y, _ in corners) + 1):
        crossed: list[float] = []
        for (y0, x0), (y1, x1) in sides:
            if min(y0, y1) <= y <= max(y0, y1):
                crossed += [x0, x1] if y0 == y1 else [x0 + (y - y0) * (x1 - x0) / (y1 - y0)]
        image[y, math.floor(min(crossed) + 0.5) : math.ceil(max(crossed) - 0.5) + 1] = 255
    return image


def _round(value: float) -> int:
    """Returns the nearest integer. Halves are rounded toward 0."""
    return int(math.copysign(math.ceil(abs(value) - 0.5), value))


def _bresenham(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the pixels of a line, drawn by Bresenham's algorithm.

    The error starts at twice the smaller minus the larger of |dx| and |dy|. If it is at least 0, the line also moves
    along the shorter axis.
    """
    (y, x), (dy, dx) = start, (end[0] - start[0], end[1] - start[1])
    steep = abs(dy) > abs(dx)
    major, minor = (abs(dy), abs(dx)) if steep else (abs(dx), abs(dy))
    step_y, step_x = (1 if dy > 0 else -1), (1 if dx > 0 else -1)
    pixels = [(y, x)]
    error = 2 * minor - major
    for _ in range(major):
        if error >= 0:
            y, x = (y, x + step_x) if steep else (y + step_y, x)
            error -= 2 * major
        error += 2 * minor
        y, x = (y + step_y, x) if steep else (y, x + step_x)
        pixels.append((y, x))
    return pixels


def thicken(image: Image, radius: float) -> Image:
    """Replaces each pixel of value 255 by a disc of `radius`."""
    size = len(image)
    distance = np.full((size, size), np.inf)
    row, column = np.mgrid[:size, :size]
    for y, x in np.argwhere(image == 255):
        np.minimum(distance, (row - y) ** 2 + (column - x) ** 2, out=distance)
    return np.where(distance <= radius**2, 255, 0).astype(np.uint8)


def disc(radius: float, half: int) -> Image:
    """Returns a disc of value 255 with smooth edges in the center of a square of 2 half + 1 pixels per side."""
    row, column = np.mgrid[: FINE * (2 * half + 1), : FINE * (2 * half + 1)] - FINE * half
    fine = np.where(row**2 + column**2 <= (FINE * radius) ** 2, 255, 0).astype(np.uint8)
    return shrink(fine, 2 * half + 1)


def shrink(image: Image, size: int) -> Image:
    """Scales a square image to `size` pixels per side: first rows, then columns, each rounded to 8 bits."""
    weights = _lanczos(len(image), size)
    rows = np.clip(np.floor(image @ weights.T + 0.5), 0, 255)
    return np.asarray(np.clip(np.floor(weights @ rows + 0.5), 0, 255), dtype=np.uint8)


@lru_cache
def _lanczos(size: int, target: int) -> Floats:
    """Returns the matrix of Lanczos-3 resampling: the weight of input pixel (column) in output pixel (row)."""
    ratio = size / target
    center = (np.arange(target)[:, None] + 0.5) * ratio
    at = (np.arange(size)[None, :] + 0.5 - center) / ratio
    weights = np.where(np.abs(at) < 3, np.sinc(at) * np.sinc(at / 3), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
