"""seqtk-average: averages the weights of several checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from seqtk.cli.command import command
from seqtk.cli.loading import check_output, split_paths
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError, how_many


@dataclass(frozen=True)
class AverageConfig:
    """Settings of seqtk-average: the checkpoints to average, and the file to write."""

    checkpoint: str = setting(
        "",
        help="The folder of a run, or a model file in it, to average the newest checkpoints of this run. Or the model "
        "files to average, separated by commas.",
    )
    last: int = setting(5, at_least=1, help="Number of newest checkpoints of the run to average.")
    output: str = setting("", help="The file to write. Default: average.safetensors in the folder of the run.")


@command("seqtk-average", AverageConfig)
def main(config: AverageConfig) -> None:
    """Average the weights of checkpoints: seqtk-average checkpoint=SAVE_DIR [last=5] [output=FILE]."""
    if not config.checkpoint:
        raise UserError("checkpoint= is not set.", "Set it to the folder of a run (save_dir).")
    paths = [Path(path) for path in split_paths(config.checkpoint)]
    if len(paths) > 1 and not config.output:
        raise UserError("output= is not set.", "Set it to the file to write.")
    from seqtk.checkpoint import edit, model_file

    if len(paths) == 1:
        found = edit.checkpoints_of(config.checkpoint)
        paths = found[-config.last :]
        if len(found) < config.last:
            print(f"last={config.last}, but {found[0].parent} has only {how_many(len(found), 'checkpoint')}.")
    output = Path(config.output) if config.output else paths[-1].parent / "average.safetensors"
    check_output(output, checkpoint=config.checkpoint if config.output else None)
    model_file.write(output, edit.average(paths))
    print(f"Mean of {how_many(len(paths), 'checkpoint')}: {', '.join(path.name for path in paths)}")
    print(output)


if __name__ == "__main__":
    main()
