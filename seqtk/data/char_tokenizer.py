"""Tokenizes text into bytes or characters.

A dictionary file has one token per line, so bytes, white space and invisible characters have names: byte 10 is `<0x0A>`
and the space is `<U+0020>`. All other characters appear as they are.
"""

import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.data.vocabulary import SPECIALS, UNK, Vocabulary

Array = npt.NDArray[Any]

BYTE_NAMES = tuple(f"<0x{byte:02X}>" for byte in range(256))

_BYTE_OF = {name: byte for byte, name in enumerate(BYTE_NAMES)}
_CHARACTER_NAME = re.compile(r"<U\+([0-9A-F]{4,6})>")
_NEWLINE = ord("\n")


def byte_vocabulary() -> Vocabulary:
    """Returns the vocabulary of the 256 bytes, in which byte b has id 4 + b."""
    return Vocabulary(BYTE_NAMES)


def character_name(character: str) -> str:
    """Returns the name of a character in the dictionary."""
    visible = character.isprintable() and not character.isspace()
    return character if visible else f"<U+{ord(character):04X}>"


def bytes_to_names(line: str) -> list[str]:
    """Splits a text into its UTF-8 bytes, and returns their names in the dictionary: `<0x41>` for "A"."""
    return [BYTE_NAMES[byte] for byte in line.encode("utf-8")]


def names_to_bytes(names: Sequence[str]) -> str:
    """Decodes a text from the names of its bytes. Other names and invalid UTF-8 become U+FFFD."""
    parts = (bytes([_BYTE_OF[name]]) if name in _BYTE_OF else b"\xff" for name in names)
    return b"".join(parts).decode("utf-8", errors="replace")


def characters_to_names(line: str) -> list[str]:
    """Splits a text into characters, and returns their names."""
    return [character_name(character) for character in line]


def names_to_characters(names: Sequence[str]) -> str:
    """Decodes a text from the names of its characters. The unknown token becomes U+FFFD."""
    return "".join(map(_character, names))


def _character(name: str) -> str:
    if name in SPECIALS:
        return "\ufffd"
    named = _CHARACTER_NAME.fullmatch(name)
    return chr(int(named[1], 16)) if named else name


def kind_of(vocabulary: Vocabulary) -> str | None:
    """Returns "bytes" or "characters" if the tokens have the names of bytes or of characters, else None."""
    words = vocabulary.tokens[UNK + 1 :]
    if tuple(words) == BYTE_NAMES:
        return "bytes"
    return "characters" if any(_CHARACTER_NAME.fullmatch(word) for word in words) else None


def count_characters(block: bytes, *, newlines: bool) -> Counter[bytes]:
    """Counts the characters of a block of text. With `newlines`, line feeds count as characters.

    The keys of the counter are the names of the characters, in UTF-8.
    """
    codes, counts = np.unique(symbols(block, characters=True, newlines=newlines)[0], return_counts=True)
    names = (character_name(chr(code)).encode("utf-8") for code in codes)
    return Counter(dict(zip(names, counts.tolist(), strict=True)))


def symbols(block: bytes, *, characters: bool, newlines: bool) -> tuple[Array, Array]:
    """Returns the bytes or code points of all lines of a block, concatenated, and the length of each line."""
    text = block if newlines or b"\r" not in block else b"".join(map(_normalize_line_end, io.BytesIO(block)))
    codes: Array = np.frombuffer(text, dtype=np.uint8)
    if characters:
        codes = np.frombuffer(text.decode("utf-8").encode("utf-32-le"), dtype="<u4")
    is_end = codes == _NEWLINE
    ends = np.flatnonzero(is_end) + 1
    has_end = np.ones(len(ends), dtype=np.int64)
    if len(codes) and not is_end[-1]:  # the last line of a file may have no line feed
        ends, has_end = np.append(ends, len(codes)), np.append(has_end, 0)
    sizes = np.diff(ends, prepend=0)
    return (codes, sizes) if newlines else (codes[~is_end], sizes - has_end)


def code_of(name: str, *, characters: bool) -> int | None:
    """Returns the code point or byte that a token represents, or None for filler words and special symbols."""
    if not characters:
        return _BYTE_OF.get(name)
    named = _CHARACTER_NAME.fullmatch(name)
    return int(named[1], 16) if named else ord(name) if len(name) == 1 else None


def _normalize_line_end(line: bytes) -> bytes:
    return line.rstrip(b"\r\n") + b"\n" * line.endswith(b"\n")
