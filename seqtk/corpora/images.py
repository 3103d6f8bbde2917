"""Reads and writes gray PNG images, and reads the batches of CIFAR-10, without Pillow and without unpickling."""

import pickletools
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seqtk.data.labelled_arrays import ArrayFile
from seqtk.utils.errors import UserError

Image = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CIFAR_PIXELS = 3 * 32 * 32


def read_png(content: bytes, name: str) -> Image:
    """Returns the pixels of a gray 8-bit PNG image that is not interlaced.

    Raises UserError if the file is not such an image. `name` is the name of the file in the error.
    """
    if not content.startswith(_SIGNATURE):
        raise UserError(f"{name} is not a PNG image.")
    data, at, shape = b"", len(_SIGNATURE), (0, 0)
    try:
        while at < len(content):
            length, kind = struct.unpack_from(">I4s", content, at)
            body = content[at + 8 : at + 8 + length]
            if zlib.crc32(kind + body) != struct.unpack_from(">I", content, at + 8 + length)[0]:
                raise UserError(f"{name} is damaged: the checksum of its chunk {kind!r} is wrong.")
            if kind == b"IHDR":
                width, height, *form = struct.unpack(">IIBBBBB", body)
                if form != [8, 0, 0, 0, 0]:
                    raise UserError(f"{name} is not a gray 8-bit image.", "Convert it, or use a different source=.")
                shape = (height, width)
            data += body if kind == b"IDAT" else b""
            at += 12 + length
        rows = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(shape[0], shape[1] + 1)
    except (struct.error, zlib.error, ValueError):
        raise UserError(f"{name} is damaged.") from None
    return _unfiltered(rows[:, 0], rows[:, 1:], name)


def _unfiltered(kinds: Image, rows: Image, name: str) -> Image:
    """Undoes the filters of PNG (section 9), which store each pixel as its difference from a prediction."""
    above = np.zeros(rows.shape[1], dtype=np.uint8)
    image = np.empty_like(rows)
    for index, (kind, row) in enumerate(zip(kinds.tolist(), rows, strict=True)):
        if kind == 0:
            image[index] = row
        elif kind == 1:
            image[index] = np.cumsum(row, dtype=np.uint8)
        elif kind == 2:
            image[index] = row + above
        elif kind in (3, 4):
            image[index] = _guessed(row.tolist(), above.tolist(), paeth=kind == 4)
        else:
            raise UserError(f"{name} is damaged: PNG has no filter type {kind}.")
        above = image[index]
    return image


def _guessed(row: list[int], above: list[int], *, paeth: bool) -> list[int]:
    """Undoes the filter Average or Paeth, which predicts a pixel from pixels above it and to its left."""
    out: list[int] = []
    left = corner = 0
    for value, up in zip(row, above, strict=True):
        guess = (left + up) // 2
        if paeth:
            base = left + up - corner
            guess = min((left, up, corner), key=lambda pixel: abs(base - pixel))
        left, corner = (value + guess) & 255, up
        out.append(left)
    return out


def write_png(image: Image) -> bytes:
    """Returns the bytes of a gray PNG file with the pixels of `image`."""
    height, width = image.shape
    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), image], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def sheet(images: Image, columns: int, gap: int = 2) -> Image:
    """Arranges images of equal size in `columns` columns of one image with a white background."""
    rows = -(-len(images) // columns)
    height, width = (side + gap for side in images.shape[1:])
    page = np.full((rows * height + gap, columns * width + gap), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        y, x = gap + index // columns * height, gap + index % columns * width
        page[y : y + image.shape[0], x : x + image.shape[1]] = image
    return page


def gray(rgb: Image) -> Image:
    """Converts CIFAR's images to gray (ITU-R 601, rounded). An input image has 3 × 1024 values: red, green, blue."""
    red, green, blue = rgb.reshape(-1, 3, CIFAR_PIXELS // 3).astype(np.int64).transpose(1, 0, 2)
    return np.asarray((299 * red + 587 * green + 114 * blue + 500) // 1000, dtype=np.uint8)


def read_binary_batch(content: bytes, name: str) -> tuple[Image, npt.NDArray[np.int64]]:
    """Returns (pixels, labels) of a batch of cifar-10-binary. An image is 1 byte of label and 3072 bytes of pixels."""
    if not content or len(content) % (1 + CIFAR_PIXELS):
        raise UserError(f"{name} is not a batch of CIFAR-10: it has {len(content):,} bytes.")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + CIFAR_PIXELS)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def read_pickled_batch(content: bytes, name: str) -> tuple[Image, npt.NDArray[np.int64]]:
    """Returns (pixels, labels) of a batch of cifar-10-python, without unpickling it, so no code in it runs.

    The pickle is only split into its instructions. The pixels are the string of 3072 bytes per image, and the labels
    are the numbers in the list after the key `labels`.
    """
    pixels: bytes | None = None
    labels: list[int] = []
    listing = False
    try:
        for instruction, argument, _ in pickletools.genops(content):
            if isinstance(argument, (str, bytes)):
                text = argument.encode("latin-1", "replace") if isinstance(argument, str) else argument
                listing = text == b"labels"
                if len(text) >= CIFAR_PIXELS and len(text) % CIFAR_PIXELS == 0:
                    pixels = text
            elif listing and instruction.name in ("BININT", "BININT1", "BININT2", "INT", "LONG1"):
                labels.append(int(argument or 0))
            elif instruction.name in ("APPENDS", "SETITEMS"):
                listing = False
    except (ValueError, IndexError, OverflowError):
        pixels = None
    if pixels is None or len(labels) != len(pixels) // CIFAR_PIXELS or not all(0 <= label <= 9 for label in labels):
        raise UserError(
            f"{name} is not a batch of CIFAR-10: it contains no images with labels.",
            "For safety, seqtk does not unpickle files, so it cannot read every format. Use cifar-10-binary.tar.gz.",
        )
    return np.frombuffer(pixels, dtype=np.uint8).reshape(-1, CIFAR_PIXELS), np.array(labels)


def read_npz(path: Path) -> tuple[Image, npt.NDArray[np.int64]]:
    """Reads the arrays `image`, uint8 [N, 32, 32], and `label`, [N], without unpickling. Returns (pixels, labels)."""
    array = ArrayFile(str(path), items="image", labels="label")
    parts = list(array.parts())
    labels = array.labels()
    if not array.pixels or array.shape[1:] != (32, 32) or not all(label.isdecimal() for label in labels):
        raise UserError(
            f"{path}: the array 'image' must be uint8 [N, 32, 32], and the array 'label' must be integers [N].",
            f"The shape of 'image' is {list(array.shape)}.",
        )
    pixels = np.concatenate([symbols for symbols, _ in parts])
    return pixels.reshape(array.count, -1), np.array(labels, dtype=np.int64)
