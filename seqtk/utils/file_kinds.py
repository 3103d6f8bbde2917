"""Describes a file or folder, for errors about a path that a command cannot read."""

from pathlib import Path

PYTORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""First bytes of files from torch.save: of a zip archive, and of the old format (a pickled magic number)."""
INDEXED = (b"TNTIDX", b"MMIDIDX")
"""First bytes of an index of token ids, in the formats of fairseq and seqtk."""


def describe(path: Path) -> tuple[str, str]:
    """Returns (description of the contents of `path`, command or setting that reads it; empty if there is none)."""
    if path.is_dir():
        return _describe_folder(path)
    with path.open("rb") as file:
        head = file.read(2048)
    if head.startswith(PYTORCH):
        return "a checkpoint in PyTorch's format", f"seqtk-import-fairseq {path} data=DATA-BIN output=model.safetensors"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        if b'"__metadata__":{"' in head and any(key in head for key in (b'"assets"', b'"config"', b'"info"')):
            return "a model file of seqtk", f"seqtk-generate checkpoint={path}"
        return "a safetensors file", ""
    if head.startswith(INDEXED) or path.suffix in (".idx", ".bin"):
        return "a file of a data-bin directory", f"task.data={path.parent} or data={path.parent}"
    if path.suffix == ".jsonl":
        return "a training log", f"seqtk-plot {path.parent} output=curves.png"
    if path.suffix in (".yaml", ".yml"):
        return "a recipe", f"seqtk-train recipe={path}"
    if path.suffix == ".model":
        return "a SentencePiece model", f"seqtk-preprocess sentencepiece={path}"
    if path.name.startswith("dict.") and path.suffix == ".txt":
        return "a dictionary", f"data={path.parent}"
    if b"\0" not in head:
        return ("a text file" if head else "an empty file"), ""
    return "a binary file of an unknown format", ""


def _describe_folder(path: Path) -> tuple[str, str]:
    if any(path.glob("dict*.txt")):
        return "a data-bin directory", f"seqtk-train task.data={path}"
    if (path / "log.jsonl").is_file():
        return "the folder of a run without a checkpoint", ""
    return "a folder without a model", ""
