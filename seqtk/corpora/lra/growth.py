"""Generates dashed paths that do not touch each other; `pathfinder` draws them into images.

The two paths of an image have S segments each. They start at a fixed distance and alternately grow by one segment. If a
new segment touches another segment in each of `_TRIES` random directions, the attempt fails and a new attempt starts.

This is rejection sampling: a hard image of 32 x 32 pixels takes about 300 attempts. `_PARALLEL` attempts run at a time,
each in a separate image. If an attempt fails, a new attempt starts in the image, so NumPy always works on full arrays.
All successful attempts have the same number of steps, so stopping at the first `count` of them introduces no bias.
`Tables` contains everything that depends only on a direction (candidates, weights, patches of pixels).

Coordinates are (y, x). A position is the index of a pixel in a flattened image with a border of `pad` blocked pixels.
An offset is the difference of two positions. Masks are uint8, from 0 (free) to 255 (blocked).

Shapes of arrays are in parentheses. Shape suffixes: N images, J pixels of a disc, S segments.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.corpora.lra.drawing import FINE, Image, line, shrink, thicken
from seqtk.utils.errors import UserError

_PARALLEL = 512  # number of attempts at the same time
_TRIES = 3  # maximum number of draws of a start or a segment
_GUESSES = 24  # number of random pixels that are tried as the start of a path
_BLOCKED = 255
_FREE = 76  # 0.3 of 255: a path can start on pixels with at most this mask
_TOUCHING = 459  # 1.8 of 255: two segments touch where the sum of their masks is at least this
_PATIENCE = 50_000
"""After this number of attempts without a success, `grow_pairs` raises an error."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """The settings of images of one size. Lengths are in pixels.

    Attributes:
        length, thickness: The length and thickness of a segment.
        margins: The possible distances between segments. One is drawn at random for each image.
        seed_distance: The distance between the starts of the two paths.
        radius: The radius of the dots.
        continuity: Multiplies the angle of a turn; larger values make paths straighter.
        contrast: Multiplies the brightness of all paths.
        long_path_contrast: Also multiplies the brightness of the two long paths.
        distractor_segments: The total number of segments of the distractors.
    """

    length: int
    thickness: float
    margins: tuple[int, ...]
    seed_distance: int
    radius: float
    continuity: float
    contrast: float
    long_path_contrast: float
    distractor_segments: int


class Random:
    """A random number generator whose numbers are the same in every version of NumPy."""

    def __init__(self, key: tuple[int, ...]) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, count: int) -> Floats:
        """Returns `count` uniform random numbers in [0, 1)."""
        return np.asarray((self._bits.random_raw(count) >> 11) * 2.0**-53)

    def below(self, limit: int, count: int) -> Ints:
        """Returns `count` uniform random integers from 0 to limit - 1."""
        return (self.uniform(count) * limit).astype(np.int64)


class Tables:
    """Precomputed values for every direction in which a segment can point.

    A segment leads from its tail to its head. Its pivot is the pixel `margin` pixels behind its tail. The candidates
    are the pixels on a circle around the pivot where its head can be.

    Directions below 360 are for the first segment of a path: direction d is the angle of d - 180 degrees. Direction
    360 + k leads from a pivot to candidate k. Patch d contains the pixels of a segment in direction d, as offsets from
    its tail if d is below 360, otherwise as offsets from its head.

    Args:
        size: The height and width of an image in pixels.
        margin: The distance between segments in pixels.
        style: The settings of the images.

    Attributes:
        step: The offset from the pivot of a segment to the pivot of the next one: (directions,).
        candidate: The offset from the pivot to each candidate: (candidates,).
        ahead, weight: The candidates that can follow each direction, and cos² of the turning angle: (directions,
            ahead).
        near: The offsets from the pivot to a disc around each candidate in `ahead`: (directions, J, ahead).
        mask_at, mask: Offsets and mask values of the pixels of each patch: (directions, pixels).
        ink_at, ink: Offsets and brightness of the pixels of each patch: (directions, pixels).
        hit_at, hit: The entries of `mask_at` and `mask` whose mask value is large enough to touch another segment.
        empty: The flattened mask of an image without paths, with a blocked border: (positions,).
        pixels: The positions of all pixels of the image: (size * size,).
        possible: For each direction below 360, True if a path can start in this direction: (360,).
        body: The offsets from a start that must be free for a path to start there: (360, pixels).
    """

    def __init__(self, size: int, margin: int, style: Style) -> None:
        self.size, self.margin, self.style = size, margin, style
        reach = style.length + margin
        self.half = style.length + math.ceil(style.thickness) + margin
        self.pad = 2 * reach + style.length + 2 * margin + self.half
        self.width = size + 2 * self.pad
        candidates = self._candidates(reach)
        angles = np.concatenate([np.arange(-180, 180) * np.pi / 180, np.arctan2(candidates[:, 0], candidates[:, 1])])
        self.step = self.offset(_along(angles, style.length + 2 * margin))
        self.candidate = self.offset(candidates)
        radius = np.arange(-margin, margin + 1)
        around_J = self.offset(np.argwhere(radius[:, None] ** 2 + radius**2 <= margin**2) - margin)
        turn = np.abs(angles[360:] - angles[:, None])
        turn = np.minimum(np.minimum(turn, 2 * np.pi - turn) * style.continuity, np.pi / 2)
        weight = np.cos(turn) ** 2
        self.ahead = np.argsort(weight < 1e-9, axis=1, kind="stable")[:, : int((weight >= 1e-9).sum(axis=1).max())]
        self.weight = np.take_along_axis(weight, self.ahead, axis=1)
        self.near = around_J[None, :, None] + self.candidate[self.ahead][:, None, :]
        backwards = np.where(angles[360:] > 0, angles[360:] - np.pi, angles[360:] + np.pi)
        patches = [self._patch(angle) for angle in [*angles[:360], *backwards]]
        inks, masks = (np.stack([patch[index].ravel() for patch in patches]) for index in (0, 1))
        square = np.arange(-self.half, self.half + 1)
        positions = self.offset(np.stack(np.meshgrid(square, square, indexing="ij"), axis=-1).reshape(-1, 2))
        self.mask_at, self.mask = _sparse(positions, masks, least=1)
        self.ink_at, self.ink = _sparse(positions, inks, least=1)
        self.hit_at, self.hit = _sparse(positions, masks, least=_TOUCHING - _BLOCKED)
        inside = np.full((size, size), 0, dtype=np.uint8)
        inside[0] = inside[-1] = inside[:, 0] = inside[:, -1] = _BLOCKED
        self.empty = np.pad(inside, self.pad, constant_values=_BLOCKED).ravel()
        self.pixels = self.position_of(np.argwhere(np.ones((size, size), dtype=bool)))
        self._compute_starts(angles[:360], masks[:360].reshape(360, 2 * self.half + 1, -1))

    def _candidates(self, reach: int) -> Ints:
        """Returns the sorted (y, x) of the candidates relative to the pivot, one per pixel of arc: (candidates, 2)."""
        angles = np.arange(0, 360, 360 / (2 * np.pi * reach)) * np.pi / 180
        base = 64  # as in the original, adding the integer pivot rounds off the 1e-16 of a sine
        positions = base + reach * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        return np.unique(positions.astype(np.int64), axis=0) - base

    def offset(self, yx: Ints) -> Ints:
        """Converts differences of coordinates (..., 2) to offsets (...)."""
        return yx[..., 0] * self.width + yx[..., 1]

    def position_of(self, yx: Ints) -> Ints:
        """Converts coordinates in the image (..., 2) to positions (...)."""
        return self.offset(yx + self.pad)

    def coordinates(self, position: Ints) -> Ints:
        """Converts positions (...) to coordinates in the image (..., 2)."""
        return np.stack([position // self.width - self.pad, position % self.width - self.pad], axis=-1)

    def crop(self, canvas: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Removes the border: converts padded images (images, positions) to images (images, size, size)."""
        square = canvas.reshape(-1, self.width, self.width)
        return square[:, self.pad : self.pad + self.size, self.pad : self.pad + self.size]

    def _patch(self, angle: float) -> tuple[Image, Image]:
        """Returns two square images of a segment from the center along `angle`: its brightness, and its mask."""
        style, center = self.style, self.half * FINE
        dy, dx = _along(np.array([angle]), style.length * FINE)[0].tolist()
        width = round(style.thickness * FINE)
        fine = line(2 * center + 1, (center, center), (center + dy, center + dx), width)
        size = 2 * self.half + 1
        return shrink(fine, size), shrink(thicken(fine, self.margin * FINE), size)

    def _compute_starts(self, angles: Floats, masks: Image) -> None:
        """Computes the positions where a path can start in each of the 360 directions.

        A path can start where every pixel of `body` is free. The body is the part of the segment's mask with value 255
        inside a square of 2 (length + margin) + 1 pixels, shifted by one pixel as in the original. A direction is not
        possible if for some pixel of the image the whole body lies outside the image: the original code finds no start
        in this case.

        Args:
            angles: The angles of the directions in radians: (360,).
            masks: The masks of the patches of the directions: (360, height, width).
        """
        style, size, reach = self.style, self.size, self.style.length + self.margin
        bodies = [np.argwhere(mask == _BLOCKED) - self.half + 1 for mask in masks]
        bodies = [body[(np.abs(body) <= reach).all(axis=1)] for body in bodies]
        self.possible = np.array([self._reaches_everywhere(body) for body in bodies])
        longest = max(len(body) for body in bodies)
        self.body = np.zeros((360, longest), dtype=np.int64)
        head = _along(angles, style.length)
        pivot = head - _ceil_back(angles, style.length + self.margin)
        self.head, self.pivot = head, pivot
        self.pivot_position = self.offset(pivot)
        near_edge = 2 * style.seed_distance
        edge = (np.arange(size) < near_edge) | (np.arange(size) >= size - near_edge)
        occupied = np.pad(edge[:, None] | edge[None, :], self.pad, constant_values=True).ravel()
        directions, positions, weights = [], [], []
        for direction in np.flatnonzero(self.possible):
            body = self.offset(bodies[direction])
            self.body[direction] = np.resize(body, longest)
            free = self.pixels[~occupied[self.pixels[:, None] + body].any(axis=1)]
            good = free[self.inside(self.coordinates(free), np.full(len(free), direction))]
            directions.append(np.full(len(good), direction))
            positions.append(good)
            weights.append(np.full(len(good), 1 / max(1, len(free))))
        self.first_direction, self.first_position = np.concatenate(directions), np.concatenate(positions)
        self.first_share = np.cumsum(np.concatenate(weights))

    def _reaches_everywhere(self, body: Ints) -> bool:
        """Returns True if a body (pixels, 2) overlaps the image from every start in the image."""
        reached = np.zeros((self.size, self.size), dtype=bool)
        for y, x in -body:
            reached[max(0, y) : self.size + min(0, y), max(0, x) : self.size + min(0, x)] = True
        return bool(reached.all())

    def inside(self, yx: Ints, direction: Ints) -> npt.NDArray[np.bool_]:
        """Returns a mask of the segments with tails `yx` (segments, 2) whose head and pivot are inside the image."""
        ends = np.concatenate([yx + self.head[direction], yx + self.pivot[direction]], axis=1)
        return np.asarray(((ends >= 0) & (ends < self.size)).all(axis=1))

    def starts(self, count: int, bits: Random) -> tuple[Ints, Ints]:
        """Draws the first segments of `count` pairs of paths.

        The first path of a pair starts at random among all starts that are possible in the original. The second path
        starts at the distance `seed_distance`. If this fails `_TRIES` times, both are drawn again.

        Returns:
            (positions of the tails, directions): (count, 2) each.
        """
        position, direction = np.zeros((count, 2), dtype=np.int64), np.zeros((count, 2), dtype=np.int64)
        todo = np.arange(count)
        while len(todo):
            pick = np.searchsorted(self.first_share, bits.uniform(len(todo)) * self.first_share[-1], side="right")
            position[todo, 0], direction[todo, 0] = self.first_position[pick], self.first_direction[pick]
            left = todo
            for _ in range(_TRIES):
                angle = bits.below(360, len(left)) * np.pi / 180
                second = bits.below(360, len(left))
                away = self.style.seed_distance * np.stack([np.sin(angle), np.cos(angle)], axis=1)
                yx = np.round(self.coordinates(position[left, 0]) + away).astype(np.int64)
                good = self.inside(yx, second)
                position[left[good], 1], direction[left[good], 1] = self.position_of(yx[good]), second[good]
                left = left[~good]
            todo = left
        return position, direction


@lru_cache(maxsize=4)
def tables_of(size: int, margin: int, style: Style) -> Tables:
    """Returns the tables for images of this size. Repeated calls with the same arguments return the same object."""
    return Tables(size, margin, style)


def _along(angles: Floats, distance: float) -> Ints:
    """Returns the (y, x) of the pixel at `distance` along each angle, rounded up as in the original: (angles, 2)."""
    base = 64  # as in the original, adding an integer rounds off the 1e-16 of a sine
    return np.ceil(base + distance * np.stack([np.sin(angles), np.cos(angles)], axis=1)).astype(np.int64) - base


def _ceil_back(angles: Floats, distance: float) -> Ints:
    """Returns the negated result of `_along` for the opposite angles, so it is rounded down: (angles, 2)."""
    opposite = np.where(angles < 0, angles + np.pi, angles - np.pi)
    return -_along(opposite, distance)


def _sparse(positions: Ints, values: Image, *, least: int) -> tuple[Ints, Image]:
    """Selects the values of at least `least` in each row. Rows with fewer such values repeat them.

    Args:
        positions: The position or offset of each column: (columns,).
        values: The values: (rows, columns).
        least: The minimum value.

    Returns:
        (positions, values) of the selected values: (rows, selected) each.
    """
    chosen = [np.flatnonzero(row >= least) for row in values]
    longest = max(map(len, chosen))
    index = np.stack([np.resize(each, longest) for each in chosen])
    return positions[index], np.take_along_axis(values, index, axis=1)


class Growth:
    """Grows the paths of many images in parallel.

    A path is stored as the pivot, direction, position and patch of its last segment. The last segment is added to the
    mask only with the next segment, because neighboring segments of a path may touch.

    Args:
        tables: The tables for this size of image.
        mask: The padded mask of each image, which is changed in place: (images, positions).
        paths: The number of paths in each image.
    """

    def __init__(self, tables: Tables, mask: Image, paths: int) -> None:
        images = len(mask)
        self.tables, self.mask = tables, mask
        self._flat = mask.reshape(-1)
        self._base = np.arange(images) * mask.shape[1]
        self.pivot, self.direction, self.last_at, self.last_patch = np.zeros((4, images, paths), dtype=np.int64)

    def start(self, images: Ints, path: int, position: Ints, direction: Ints) -> None:
        """Starts path number `path` in each of `images`, with a segment from `position` along `direction`."""
        self.pivot[images, path] = position + self.tables.pivot_position[direction]
        self.direction[images, path] = direction
        self.last_at[images, path], self.last_patch[images, path] = position, direction

    def settle(self, images: Ints, path: int | Ints) -> None:
        """Adds the last segment of path number `path` to the mask of each of `images`."""
        patch = self.last_patch[images, path]
        at = (self._base[images] + self.last_at[images, path])[:, None] + self.tables.mask_at[patch]
        self._flat[at] = np.maximum(self._flat[at], self.tables.mask[patch])

    def extend(self, images: Ints, path: int | Ints, bits: Random) -> npt.NDArray[np.bool_]:
        """Adds a random segment to path number `path` in each of `images`.

        Returns:
            True for the images in which a segment was added: (images,). False if each of `_TRIES` segments touches
            another segment.
        """
        tables = self.tables
        base, direction = self._base[images], self.direction[images, path]
        pivot = self.pivot[images, path] + tables.step[direction]
        blocked = self._flat[(base + pivot)[:, None, None] + tables.near[direction]].max(axis=1)
        share = np.cumsum(tables.weight[direction] * (_BLOCKED - blocked), axis=1)
        left = np.flatnonzero(share[:, -1] >= 1e-4 * _BLOCKED)
        fits = np.zeros(len(images), dtype=bool)
        chosen = np.zeros(len(images), dtype=np.int64)
        for _ in range(_TRIES):
            if not len(left):
                break
            rank = (share[left] <= (bits.uniform(len(left)) * share[left, -1])[:, None]).sum(axis=1)
            pick = tables.ahead[direction[left], rank]
            at = (base[left] + pivot[left] + tables.candidate[pick])[:, None] + tables.hit_at[360 + pick]
            good = (self._flat[at].astype(np.int16) + tables.hit[360 + pick]).max(axis=1) < _TOUCHING
            fits[left[good]], chosen[left[good]] = True, pick[good]
            left = left[~good]
        grown = images[fits]
        which = path if isinstance(path, int) else path[fits]
        self.settle(grown, which)
        self.pivot[grown, which] = pivot[fits]
        self.direction[grown, which] = self.last_patch[grown, which] = 360 + chosen[fits]
        self.last_at[grown, which] = pivot[fits] + tables.candidate[chosen[fits]]
        return fits


@dataclass(frozen=True, eq=False)
class Pairs:
    """The two paths of each image, and the mask of each image.

    Attributes:
        at_N2S: The position of each segment (see `Tables`): (images, 2, segments).
        patch_N2S: The patch of each segment: (images, 2, segments).
        mask: The padded masks with both paths: (images, positions).
    """

    at_N2S: Ints
    patch_N2S: Ints
    mask: Image


def grow_pairs(tables: Tables, count: int, length: int, bits: Random) -> Pairs:
    """Grows pairs of paths until `count` attempts have succeeded.

    Args:
        tables: The tables for this size of image.
        count: The number of pairs.
        length: The number of segments of each path.
        bits: The random number generator.

    Raises:
        UserError: If none of the first `_PATIENCE` attempts succeeds.
    """
    growth = Growth(tables, np.repeat(tables.empty[None], _PARALLEL, axis=0), 2)
    history = np.zeros((2, _PARALLEL, 2, length), dtype=np.int64)
    step = np.zeros(_PARALLEL, dtype=np.int64)
    images = restart = np.arange(_PARALLEL)
    found: list[tuple[npt.NDArray[Any], Image]] = []
    attempts = done = 0
    while True:
        growth.mask[restart] = tables.empty
        position, direction = tables.starts(len(restart), bits)
        for path in (0, 1):
            growth.start(restart, path, position[:, path], direction[:, path])
        history[0, restart, :, 0], history[1, restart, :, 0] = position, direction
        step[restart] = 2  # the number of segments of both paths
        attempts += len(restart)
        growing = step % 2  # the path that grows by a segment
        fits = growth.extend(images, growing, bits)
        history[0, images, growing, step // 2] = growth.last_at[images, growing]
        history[1, images, growing, step // 2] = growth.last_patch[images, growing]
        step += 1
        complete = np.flatnonzero(fits & (step == 2 * length))
        if len(complete):
            growth.settle(complete, 1)
            found.append((history[:, complete].copy(), growth.mask[complete].copy()))
            done += len(complete)
        if done >= count:
            break
        if attempts > _PATIENCE and not done:
            raise UserError(
                f"contour_length={length}: two such paths do not fit into {tables.size} x {tables.size} pixels.",
                f"{attempts:,} attempts failed.",
                "Lower contour_length. The Long Range Arena has 6, 9 and 14.",
            )
        restart = np.flatnonzero(~fits | (step == 2 * length))
    segments = np.concatenate([part for part, _ in found], axis=1)[:, :count]
    return Pairs(segments[0], segments[1], np.concatenate([mask for _, mask in found])[:count])


def find_starts(growth: Growth, images: Ints, bits: Random) -> tuple[Ints, Ints, Ints]:
    """Draws the start of a path in each of `images`, with up to `_TRIES` random directions.

    An image is omitted if no position is free in a drawn direction, or if all tries fail.

    Returns:
        (images in which a path can start, position and direction of its first segment): (starts,) each.
    """
    tables = growth.tables
    found: list[tuple[Ints, Ints, Ints]] = []
    for _ in range(_TRIES):
        direction = bits.below(360, len(images))
        images, direction = images[tables.possible[direction]], direction[tables.possible[direction]]
        position = _free_position(growth, images, direction, bits)
        images, position, direction = images[position >= 0], position[position >= 0], direction[position >= 0]
        good = tables.inside(tables.coordinates(position), direction)
        found.append((images[good], position[good], direction[good]))
        images = images[~good]
    images, position, direction = (np.concatenate(column) for column in zip(*found, strict=True))
    return images, position, direction


def _free_position(growth: Growth, images: Ints, direction: Ints, bits: Random) -> Ints:
    """Draws the start of a path along `direction` in each of `images`, uniformly among all free positions.

    First tries `_GUESSES` random positions per image. The first free guess is uniform among all free positions. For
    images of 128 x 128 pixels, this is 10 times as fast as finding all free positions, which is done only for images
    without a free guess.

    Returns:
        The positions, or -1 for images without a free position: (images,).
    """
    tables = growth.tables

    def free(chosen: Ints, position: Ints) -> npt.NDArray[np.bool_]:
        """Returns a mask: True where a path of `images[chosen]` can start at `position` (images, positions)."""
        is_free = np.ones((len(chosen), position.shape[-1]), dtype=bool)
        for body in tables.body[direction[chosen]].T:
            is_free &= growth.mask[images[chosen, None], position + body[:, None]] <= _FREE
        return is_free

    every = np.arange(len(images))
    guess = tables.pixels[bits.below(len(tables.pixels), len(images) * _GUESSES)].reshape(len(images), _GUESSES)
    is_free = free(every, guess)
    position = np.where(is_free.any(axis=1), guess[every, is_free.argmax(axis=1)], -1)
    unlucky = np.flatnonzero(position < 0)
    room = np.cumsum(free(unlucky, tables.pixels[None]), axis=1)
    rank = np.floor(bits.uniform(len(unlucky)) * room[:, -1])
    some = room[:, -1] > 0
    position[unlucky[some]] = tables.pixels[(room[some] <= rank[some, None]).sum(axis=1)]
    return position
