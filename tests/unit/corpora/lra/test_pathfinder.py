"""Pathfinder: positions of the dots, statistics of the original images, seeds, workers, and drawing like Pillow."""

import math

import numpy as np
import pytest

from seqtk.corpora.lra import growth
from seqtk.corpora.lra.drawing import line, shrink
from seqtk.corpora.lra.pathfinder import Drawings, PathfinderShape, distance_lookup, draw, generate
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter

SHAPES = [PathfinderShape(contour_length=length) for length in (6, 9, 14)]
SMALL = PathfinderShape(size=16, contour_length=3)
INK = {6: (12.9, 22.6, 7.5, 5.2), 9: (15.1, 26.3, 9.2, 6.2), 14: (20.1, 33.8, 12.5, 8.5)}
"""Contour length → mean pixel of the original images, and their percentages of pixels above 0, 64 and 127."""


@pytest.fixture(scope="module", params=[*SHAPES, SMALL], ids=lambda shape: f"{shape.size}-{shape.contour_length}")
def drawn(request: pytest.FixtureRequest) -> tuple[PathfinderShape, Drawings]:
    return request.param, draw(request.param, 200, (1, 0, 0))


def flooded(ink: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Returns the pixels that a flood fill of `ink` reaches from `start`. It crosses gaps of up to three pixels."""
    wide = np.zeros(np.add(ink.shape, 4), dtype=bool)
    for y in range(5):
        for x in range(5):
            wide[y : y + ink.shape[0], x : x + ink.shape[1]] |= ink
    wide = wide[2:-2, 2:-2]
    reached = np.zeros_like(wide)
    reached[tuple(start)] = True
    while True:
        around = np.pad(reached, 1)
        grown = wide & (
            around[1:-1, 1:-1] | around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]
        )
        if (grown == reached).all():
            return reached
        reached = grown


class TestDots:
    def test_flood_fill_from_a_dot_gives_the_label(self, drawn: tuple[PathfinderShape, Drawings]) -> None:
        """As in the original, a path may touch the newest segment of the other path, so a few paths meet at a dot."""
        drawings = drawn[1]
        touching = 0
        for paths, (first, second), label in zip(drawings.paths, drawings.dots, drawings.labels, strict=True):
            inks = paths > 60
            reached = [ink & flooded(ink, first) for ink in inks]
            joined = [bool(ink[tuple(first)] and part[tuple(second)]) for ink, part in zip(inks, reached, strict=True)]
            parted = [bool(one[tuple(first)] and other[tuple(second)]) for one, other in (inks, inks[::-1])]
            assert any(joined if label else parted)
            touching += any(parted if label else joined)
            assert any((part == ink).all() for part, ink in zip(reached, inks, strict=True)), "a path is one piece"
        assert touching <= 0.05 * len(drawings.images)

    def test_each_image_has_two_distinct_dots(self, drawn: tuple[PathfinderShape, Drawings]) -> None:
        drawings = drawn[1]
        for image, dots in zip(drawings.images, drawings.dots, strict=True):
            assert (dots[0] != dots[1]).any()
            peak = image[tuple(dots[0])]
            assert image[tuple(dots[1])] >= 0.95 * peak > 150

    def test_distance_of_the_dots_does_not_reveal_the_label(self, drawn: tuple[PathfinderShape, Drawings]) -> None:
        """A classifier that sees only the distance of the dots has an accuracy below 75%."""
        shape = drawn[0]
        (train, *_), (test, *_) = (draw_images(shape, 200, stream=stream) for stream in (1, 2))
        assert distance_lookup((train.distances, train.labels), (test.distances, test.labels)) < 0.75


class TestStatistics:
    def test_pixel_statistics_equal_the_original_images(self, drawn: tuple[PathfinderShape, Drawings]) -> None:
        shape, drawings = drawn
        if shape.size != 32:
            pytest.skip("the original draws no images of this size")
        images = drawings.images
        found = [images.mean(), *(100 * np.mean(images > least) for least in (0, 64, 127))]
        assert found == pytest.approx(INK[shape.contour_length], rel=0.06)

    def test_classes_are_balanced(self) -> None:
        labels = np.concatenate([part.labels for part in draw_images(PathfinderShape(contour_length=6), 2000)])
        assert abs(labels.mean() - 0.5) < 3 * 0.5 / math.sqrt(2000)

    @pytest.mark.slow
    def test_pixel_statistics_of_path_x_equal_the_original(self) -> None:
        images = draw(PathfinderShape(size=128), 60, (1, 0, 0)).images
        found = [images.mean(), *(100 * np.mean(images > least) for least in (0, 64, 127))]
        assert found == pytest.approx((7.9, 13.7, 4.0, 3.0), rel=0.06)


def draw_images(
    shape: PathfinderShape, total: int, *, seed: int = 1, stream: int = 0, workers: int = 1
) -> list[Drawings]:
    return list(generate(shape, total, seed=seed, stream=stream, workers=workers, reporter=Reporter()))


def pixels(parts: list[Drawings]) -> np.ndarray:
    return np.concatenate([part.images for part in parts])


class TestSeeds:
    def test_workers_do_not_change_images(self) -> None:
        one, two = (draw_images(SHAPES[0], 450, workers=workers) for workers in (1, 2))
        assert (pixels(one) == pixels(two)).all()
        assert [len(part.images) for part in one] == [200, 200, 50]

    def test_smaller_set_is_the_start_of_a_larger_set(self) -> None:
        assert (pixels(draw_images(SHAPES[0], 30)) == pixels(draw_images(SHAPES[0], 250))[:30]).all()

    def test_seeds_and_splits_have_different_images(self) -> None:
        base = pixels(draw_images(SHAPES[0], 200))
        for other in (draw_images(SHAPES[0], 200, seed=2), draw_images(SHAPES[0], 200, stream=1)):
            assert not {image.tobytes() for image in base} & {image.tobytes() for image in pixels(other)}


@pytest.mark.parametrize(
    ("settings", "key"), [({"size": 64}, "size=64"), ({"contour_length": 60}, "contour_length=60")]
)
def test_impossible_settings_are_refused(settings: dict[str, int], key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "_PATIENCE", 5000)
    with pytest.raises(UserError, match=key):
        draw_images(PathfinderShape(**settings), 2)


class TestDrawing:
    @pytest.mark.parametrize(("width", "length"), [(1, 4), (3, 10)])
    def test_lines_equal_pillow(self, width: int, length: int) -> None:
        image_module = pytest.importorskip("PIL.Image")
        draw_module = pytest.importorskip("PIL.ImageDraw")
        for degrees in range(-180, 180, 7):
            angle = math.radians(degrees)
            y, x = 20 + math.ceil(length * math.sin(angle)), 20 + math.ceil(length * math.cos(angle))
            expected = image_module.new("L", (41, 41))
            draw_module.Draw(expected).line((20, 20, x, y), fill=255, width=width)
            assert (np.asarray(expected) == line(41, (20, 20), (y, x), width)).all()

    def test_resizing_equals_pillow(self) -> None:
        image_module = pytest.importorskip("PIL.Image")
        fine = np.random.default_rng(0).integers(0, 256, (41, 41), dtype=np.uint8)
        for size in (9, 20, 21):
            expected = image_module.fromarray(fine).resize((size, size), image_module.LANCZOS)
            assert (np.asarray(expected) == shrink(fine, size)).all()
