"""Generates Pathfinder images. The task is to predict if two dots are the ends of the same dashed path.

The task is from Linsley et al. (2018), with the settings of the Long Range Arena. `growth` generates two paths for each
image. Shorter paths (distractors) are added, and two dots: one on the start of a path, the other on the end of the same
path (label 1) or of the other path (label 0).

Shapes of arrays are in parentheses. Shape suffixes: N images.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from seqtk.config.fields import setting
from seqtk.corpora.lra.drawing import Image, disc
from seqtk.corpora.lra.growth import Growth, Ints, Random, Style, Tables, find_starts, grow_pairs, tables_of
from seqtk.data.workers import ordered_map
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter

CHUNK = 200
"""The number of images that are drawn together. An image depends only on the seed, the split and its number."""

_PATH_TRIES = 5  # maximum number of attempts at a distractor

_STYLES = {
    16: Style(2, 0.5, (1,), 3, 1.5, 1.0, 2.0, 0.75, 6),  # from seqtk; the published sizes are 32 and 128
    32: Style(2, 0.5, (1,), 7, 1.5, 1.0, 2.0, 0.75, 20),
    128: Style(5, 1.5, (2, 3), 20, 3.0, 1.8, 0.9, 1.0, 35),
}


@dataclass(frozen=True)
class PathfinderShape:
    """The size of the images and the length of the paths."""

    size: int = setting(
        32, at_least=16, at_most=128, help="Height and width in pixels: 32, 128 (Path-X) or 16 (not in the original)."
    )
    contour_length: int = setting(
        14,
        at_least=3,
        at_most=100,
        help="Number of segments of a path: 6 (easy), 9 (medium) or 14 (hard) in the original.",
    )

    def check(self) -> None:
        """Raises UserError if `size` is not 16, 32 or 128."""
        if self.size not in _STYLES:
            raise UserError(f"size={self.size}: must be 16, 32 or 128.", "Other sizes are not supported.")


@dataclass(frozen=True, eq=False)
class Drawings:
    """Images with their labels, dots and paths.

    Attributes:
        images: The pixels, uint8: (images, size, size).
        labels: 1 if the dots are the ends of one path, otherwise 0: (images,).
        dots: The (y, x) of the two dots: (images, 2, 2).
        paths: Each of the two paths alone, uint8: (images, 2, size, size).
    """

    images: Image
    labels: Ints
    dots: Ints
    paths: Image

    @property
    def distances(self) -> Ints:
        """The distance between the two dots of each image, rounded to whole pixels: (images,)."""
        distance_N: Ints = np.hypot(*(self.dots[:, 0] - self.dots[:, 1]).T).round().astype(np.int64)
        return distance_N


def generate(
    shape: PathfinderShape, total: int, *, seed: int, stream: int, workers: int = 1, reporter: Reporter
) -> Iterator[Drawings]:
    """Yields `total` images in chunks of at most `CHUNK`. A larger `total` does not change the first images.

    Args:
        shape: The size of the images and the length of the paths.
        total: The number of images.
        seed: The seed.
        stream: The number of the split. The images of splits are independent.
        workers: The number of worker processes. It does not change the images.
        reporter: Shows the progress.

    Raises:
        UserError: If `size` is not 16, 32 or 128, or if paths of this length do not fit into the image.
    """
    shape.check()
    chunks = ((shape, min(CHUNK, total - first), (seed, stream, first // CHUNK)) for first in range(0, total, CHUNK))
    with reporter.bar(total, "drawing images", unit="") as bar:
        for drawings in ordered_map(draw, chunks, workers=workers):
            bar.update(len(drawings.images))
            yield drawings


def distance_lookup(train: Sequence[Ints], test: Sequence[Ints]) -> float:
    """Returns the accuracy of a baseline that predicts the label only from the distance between the dots.

    It predicts the label that is most frequent in `train` for this distance. A model that is not better may not have
    learned to follow paths.

    Args:
        train, test: The distances and the labels of each set: (images,) each.
    """
    votes = np.zeros(1 + max(train[0].max(), test[0].max()))
    np.add.at(votes, train[0], 2 * train[1] - 1)
    return float(np.mean((votes[test[0]] > 0) == test[1]))


def draw(shape: PathfinderShape, count: int, key: tuple[int, ...]) -> Drawings:
    """Draws the first `count` images of a chunk. The same arguments always give the same images.

    Args:
        shape: The size of the images and the length of the paths.
        count: The number of images, at most `CHUNK`. A larger number does not change the first images.
        key: The seed, the split and the number of the chunk.
    """
    style = _STYLES[shape.size]
    bits = Random(key)
    margin_N = np.array(style.margins)[bits.below(len(style.margins), CHUNK)]
    label_N = bits.below(2, CHUNK)
    parts = []
    for number, margin in enumerate(style.margins):
        chosen = np.flatnonzero(margin_N == margin)
        if len(chosen):
            tables = tables_of(shape.size, margin, style)
            parts.append((chosen, _draw(tables, shape.contour_length, label_N[chosen], Random((*key, number)))))
    order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))[:count]
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for _, part in parts])[order]
        for field in fields(Drawings)
    }
    return Drawings(**joined)


def _draw(tables: Tables, length: int, label_N: Ints, bits: Random) -> Drawings:
    """Draws one image for each label, with paths of `length` segments at the distance `tables.margin`."""
    style, count = tables.style, len(label_N)
    pairs = grow_pairs(tables, count, length, bits)
    canvas = np.zeros((count, 2, tables.width**2), dtype=np.float32)
    for index in range(length):
        for path in (0, 1):
            _paint(canvas[:, path], tables, pairs.at_N2S[:, path, index], pairs.patch_N2S[:, path, index])
    paths = tables.crop(canvas.reshape(2 * count, -1)).astype(np.uint8)
    image = canvas.max(axis=1) * np.float32(style.long_path_contrast * style.contrast)
    _add_distractors(image, tables, pairs.mask, length // 3, bits)
    chosen = bits.below(2, count)
    images = np.arange(count)
    ends = np.stack(
        [pairs.at_N2S[images, chosen, 0], pairs.at_N2S[images, np.where(label_N == 1, chosen, 1 - chosen), -1]], axis=1
    )
    half = math.ceil(style.radius) + 3
    dot = disc(style.radius, half)
    dot_at = tables.offset(np.argwhere(np.ones_like(dot, dtype=bool)) - half)
    for end in (0, 1):
        at = ends[:, end, None] + dot_at
        image[images[:, None], at] = np.maximum(image[images[:, None], at], dot.ravel())
    pixels = tables.crop(image)
    scale = 255 / pixels.max(axis=(1, 2), keepdims=True)
    return Drawings(
        np.floor(pixels * scale + 0.5).astype(np.uint8),
        label_N,
        tables.coordinates(ends),
        paths.reshape(count, 2, tables.size, tables.size),
    )


def _paint(canvas: npt.NDArray[np.float32], tables: Tables, position: Ints, patch: Ints, contrast: float = 1.0) -> None:
    """Draws a segment into each padded, flattened image of `canvas` (images, positions). The brighter value wins."""
    at = position[:, None] + tables.ink_at[patch]
    row = np.arange(len(canvas))[:, None]
    canvas[row, at] = np.maximum(canvas[row, at], tables.ink[patch] * np.float32(contrast))


def _add_distractors(image: npt.NDArray[np.float32], tables: Tables, mask: Image, length: int, bits: Random) -> None:
    """Draws paths of `length` segments in free parts of the images. Skips a path that fails `_PATH_TRIES` times.

    Args:
        image: The padded, flattened images, which are changed in place: (images, positions).
        tables: The tables for this size of image.
        mask: The padded masks of the images, which are changed in place: (images, positions).
        length: The number of segments of each path.
        bits: The random number generator.
    """
    growth = Growth(tables, mask, 1)
    for _ in range(tables.style.distractor_segments // length):
        left = np.arange(len(image))
        for _ in range(_PATH_TRIES):
            images, position, direction = find_starts(growth, left, bits)
            before = growth.mask[images].copy()
            drawn = [(position, direction)]
            growth.start(images, 0, position, direction)
            alive = np.ones(len(images), dtype=bool)
            for _ in range(length - 1):
                alive[alive] = growth.extend(images[alive], 0, bits)
                drawn.append((growth.last_at[images, 0], growth.last_patch[images, 0]))
            growth.mask[images[~alive]] = before[~alive]
            good = images[alive]
            growth.settle(good, 0)
            part = image[good]
            for at, patch in drawn:
                _paint(part, tables, at[alive], patch[alive], tables.style.contrast)
            image[good] = part
            left = np.setdiff1d(left, good)
