"""seqtk-resize: changes the maximum input length of a trained model."""

from dataclasses import dataclass
from pathlib import Path

from seqtk.cli.command import command
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class ResizeConfig:
    """Settings of seqtk-resize: the model, the new length, and the file to write."""

    checkpoint: str = setting("", help="A model file, the folder of one checkpoint, or the folder of a run.")
    max_length: int | None = setting(
        None, at_least=1, help="The new max_length of all attention layers that have one, in tokens."
    )
    output: str = setting("", help="The file to write.")
    user_dir: str | None = setting(None, help="Package or module with plug-ins, which is imported first.")


@command("seqtk-resize", ResizeConfig)
def main(config: ResizeConfig) -> None:
    """Change the maximum input length of a trained model: seqtk-resize checkpoint=PATH max_length=N output=FILE.

    Weights of positions that exist before and after are kept, so inputs that fit both lengths give the same outputs.
    Weights of new positions are initialized as in training.
    """
    for key in ("checkpoint", "max_length", "output"):
        if not getattr(config, key):
            raise UserError(f"{key}= is not set.", "Usage: seqtk-resize checkpoint=PATH max_length=N output=FILE.")
    assert config.max_length is not None
    from seqtk.cli.loading import check_output

    output = Path(config.output)
    check_output(output, checkpoint=config.checkpoint)
    from seqtk.checkpoint import edit, model_file

    contents = model_file.read(config.checkpoint)
    resized = edit.resize(contents, max_length=config.max_length, source=config.checkpoint)
    model_file.write(output, resized)
    before = ", ".join(map(str, resized.info["resized"]["from"]))
    print(f"Longest input of the attention layers: {before} → {config.max_length}")
    print(output)


if __name__ == "__main__":
    main()
