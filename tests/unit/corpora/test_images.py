"""Gray images: PNG files compared with Pillow, damaged files, and reading CIFAR-10 batches without unpickling."""

import contextlib
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest

from seqtk.corpora.images import CIFAR_PIXELS, gray, read_npz, read_pickled_batch, read_png, sheet, write_png
from seqtk.utils.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 13), dtype=np.uint8)


class TestPng:
    def test_written_image_is_read_back(self) -> None:
        assert (read_png(write_png(IMAGE), "x.png") == IMAGE).all()

    def test_png_files_are_compatible_with_pillow(self, tmp_path: Path) -> None:
        image_module = pytest.importorskip("PIL.Image")
        smooth = np.add.outer(np.arange(32) * 3, np.arange(32) * 4).astype(np.uint8)  # Pillow writes PNG filters
        for image in (IMAGE, smooth, np.zeros((1, 1), dtype=np.uint8)):
            image_module.fromarray(image).save(tmp_path / "x.png", optimize=True)
            assert (read_png((tmp_path / "x.png").read_bytes(), "x.png") == image).all()
            (tmp_path / "y.png").write_bytes(write_png(image))
            assert (np.asarray(image_module.open(tmp_path / "y.png")) == image).all()

    @pytest.mark.parametrize("kind", range(5))
    def test_every_png_filter_is_decoded(self, kind: int) -> None:
        """The test applies the filters in section 9 of the PNG specification."""
        padded = np.pad(IMAGE, ((1, 0), (1, 0))).astype(int)
        left, up, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
        distances = np.stack([np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)])
        paeth = np.choose(distances.argmin(axis=0), [left, up, corner])
        guess = [0 * left, left, up, (left + up) // 2, paeth][kind]
        rows = ((IMAGE - guess) % 256).astype(np.uint8)
        filtered = np.insert(rows, 0, kind, axis=1)
        plain = write_png(IMAGE)
        body = zlib.compress(filtered.tobytes())
        start, end = plain.index(b"IDAT") - 4, plain.index(b"IEND") - 4
        part = len(body).to_bytes(4, "big") + b"IDAT" + body + zlib.crc32(b"IDAT" + body).to_bytes(4, "big")
        assert (read_png(plain[:start] + part + plain[end:], "x.png") == IMAGE).all()

    @pytest.mark.parametrize("change", ["not png", "short", "bit", "color"])
    def test_damaged_files_are_refused(self, change: str) -> None:
        content = write_png(IMAGE)
        header = content[16:24] + b"\x08\x02\x00\x00\x00"
        bad = {
            "not png": b"GIF89a",
            "short": content[:40],
            "bit": content[:60] + bytes([content[60] ^ 1]) + content[61:],
            "color": content[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + content[33:],
        }
        with pytest.raises(UserError, match=r"x\.png"):
            read_png(bad[change], "x.png")

    def test_sheet_arranges_images_in_rows(self) -> None:
        page = sheet(np.stack([IMAGE] * 5), columns=3, gap=2)
        assert page.shape == (2 * 11 + 2, 3 * 15 + 2)
        assert (page[2:11, 2:15] == IMAGE).all()
        assert (page[13:22, 17:30] == IMAGE).all()


class TestPickledBatches:
    @pytest.mark.parametrize("protocol", [2, 3, 4])
    def test_pixels_and_labels_of_a_pickle_are_read(self, protocol: int) -> None:
        pixels = np.random.default_rng(1).integers(0, 256, (4, CIFAR_PIXELS), dtype=np.uint8)
        batch = {"batch_label": "testing batch 1", "labels": [3, 8, 0, 9], "data": pixels, "filenames": ["a"] * 4}
        found, labels = read_pickled_batch(pickle.dumps(batch, protocol=protocol), "batch")
        assert (found == pixels).all()
        assert labels.tolist() == [3, 8, 0, 9]

    def test_reading_a_pickle_runs_no_code(self, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple[object, tuple[Path]]:
                return Path.touch, (tmp_path / "touched",)

        pixels = np.zeros((1, CIFAR_PIXELS), dtype=np.uint8)
        for batch in (Attack(), {"labels": [1], "data": pixels, "x": Attack()}):
            content = pickle.dumps(batch, protocol=2)
            with contextlib.suppress(UserError):
                read_pickled_batch(content, "batch")
            assert not (tmp_path / "touched").exists()
        pickle.loads(content)
        assert (tmp_path / "touched").exists(), "the attack works if the file is unpickled"

    @pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"garbage", pickle.dumps({"labels": [1, 2]})])
    def test_files_that_are_not_cifar_batches_are_refused(self, content: bytes) -> None:
        with pytest.raises(UserError, match="is not a batch of CIFAR-10"):
            read_pickled_batch(content, "batch")


def test_gray_values_equal_pillow() -> None:
    image_module = pytest.importorskip("PIL.Image")
    rgb = np.random.default_rng(2).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    for image, found in zip(rgb, gray(rgb.reshape(5, -1)), strict=True):
        expected = np.asarray(image_module.fromarray(image.transpose(1, 2, 0)).convert("L"))
        assert np.abs(found.reshape(32, 32).astype(int) - expected).max() <= 1


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.array([object], dtype=object), label=np.zeros(1))
    with pytest.raises(UserError, match=r"x\.npz .*unpickled"):
        read_npz(tmp_path / "x.npz")
