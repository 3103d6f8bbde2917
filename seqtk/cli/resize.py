"""seqtk-resize: a trained model for longer, or only for shorter, input."""

from dataclasses import dataclass
from pathlib import Path

from seqtk.cli.command import command
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class ResizeConfig:
    """Which model, for which length, and where it goes."""

    checkpoint: str = ""  # an exported file, a checkpoint's folder or a save_dir
    max_length: int | None = None  # positions that each attention layer with a limit shall take
    output: str = ""  # the file to write
    user_dir: str | None = None  # a package or module of your own layers and tasks, imported first


@command("seqtk-resize", ResizeConfig)
def main(config: ResizeConfig) -> None:
    """Change how long an input a trained model takes: seqtk-resize checkpoint=PATH max_length=N output=FILE.

    The weights of positions that both lengths have are kept, so input that fits both is read and written as before.
    Those of new positions are as they are when training starts.
    """
    for key in ("checkpoint", "output"):
        if not getattr(config, key):
            raise UserError(f"{key} is not set.", "Give checkpoint=PATH max_length=N output=FILE.")
    if config.max_length is None or config.max_length < 1:
        raise UserError(f"max_length={config.max_length} must be set to 1 or more.")
    output = Path(config.output)
    if output.is_dir() or not output.parent.is_dir():
        why = "it is a folder" if output.is_dir() else f"there is no folder {output.parent}"
        raise UserError(f"{output} cannot be written: {why}.")

    from seqtk.checkpoint.model_file import read_export, write_export
    from seqtk.checkpoint.resize import resize

    export = resize(read_export(config.checkpoint), max_length=config.max_length, source=config.checkpoint)
    write_export(output, export)
    before = ", ".join(map(str, export.info["resized"]["from"]))
    print(f"Longest input of the attention layers: {before} → {config.max_length}")
    print(output)


if __name__ == "__main__":
    main()
