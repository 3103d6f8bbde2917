"""seqtk-average: the mean of several checkpoints' weights."""

from dataclasses import dataclass
from pathlib import Path

from seqtk.cli.command import command
from seqtk.utils.errors import UserError, how_many, near_path


@dataclass(frozen=True)
class AverageConfig:
    """Which checkpoints, and where their mean goes."""

    checkpoint: str = ""  # a save_dir, or checkpoints separated by commas
    last: int = 5  # of a save_dir: how many of its newest checkpoints
    output: str = ""  # the file to write; default: average.safetensors in the save_dir


@command("seqtk-average", AverageConfig)
def main(config: AverageConfig) -> None:
    """Average the weights of checkpoints: seqtk-average checkpoint=SAVE_DIR [last=5] [output=FILE]."""
    paths = _paths(config)
    from seqtk.checkpoint.model_file import average, write_export

    output = Path(config.output) if config.output else Path(config.checkpoint) / "average.safetensors"
    if not config.output and "," in config.checkpoint:
        raise UserError("output is not set.", "It names the file for the mean of the checkpoints.")
    if not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: there is no folder {output.parent}.")
    write_export(output, average(paths))
    print(f"Mean of {how_many(len(paths), 'checkpoint')}: {', '.join(Path(path).name for path in paths)}")
    print(output)


def _paths(config: AverageConfig) -> list[str]:
    if config.last < 1:
        raise UserError(f"last={config.last} must be at least 1.")
    if not config.checkpoint:
        raise UserError("checkpoint is not set.", "It is a save_dir, or checkpoints separated by commas.")
    if "," in config.checkpoint:
        return config.checkpoint.split(",")
    save_dir = Path(config.checkpoint)
    if not save_dir.is_dir():
        raise UserError(f"There is no folder {save_dir}.", "Give the save_dir of a run.", *near_path(save_dir))
    from seqtk.checkpoint.run_state import checkpoints_of

    folders = checkpoints_of(save_dir)
    if not folders:
        raise UserError(f"There are no checkpoints in {save_dir}.", "Give the save_dir of a run.")
    if len(folders) < config.last:
        print(f"last={config.last}, but {save_dir} holds {how_many(len(folders), 'checkpoint')}.")
    return [str(path) for path in folders[-config.last :]]


if __name__ == "__main__":
    main()
