"""seqtk-train: train a model from a recipe."""

import sys
from typing import TYPE_CHECKING

from seqtk.cli.command import command
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.training.config import TrainConfig


def _config_type() -> "type[TrainConfig]":
    from seqtk.training.config import TrainConfig

    return TrainConfig


@command("seqtk-train", _config_type, recipes=True)
def main(config: "TrainConfig") -> None:
    """Train a model, or resume the run in save_dir: seqtk-train recipe=NAME [key=value …].

    For several devices: torchrun --nproc-per-node 2 -m seqtk.cli.train recipe=NAME.
    """
    if not (config.max_updates or config.max_epochs):
        raise UserError(
            "max_updates and max_epochs are not set, and neither is a recipe.",
            "Give a recipe: recipe=NAME; seqtk-recipes ls lists them.",
            "In your own recipe set max_updates or max_epochs; on the command line add max_updates=1000.",
        )
    from seqtk.training.trainer import train

    stopped_by = train(config).signal
    if stopped_by:
        sys.exit(128 + stopped_by)


if __name__ == "__main__":
    main()
