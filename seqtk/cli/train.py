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
            "No recipe is set, and neither is max_updates or max_epochs.",
            "Give a recipe: recipe=NAME; seqtk-recipes ls lists them.",
            "Without a recipe, set max_updates or max_epochs, for example max_updates=1000.",
        )
    from seqtk.training.trainer import train

    stopped_by = train(config).signal
    if stopped_by:
        sys.exit(128 + stopped_by)


if __name__ == "__main__":
    main()
