"""seqtk-train: trains a model from a recipe."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from seqtk.cli.command import command, handling_sigterm
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.training.config import TrainConfig
    from seqtk.training.trainer import Result


def _check_replay(config: "TrainConfig", typed: Sequence[str]) -> None:
    """Raises UserError if keys are set that have no effect with `replay=`."""
    used = ("replay", "device", "threads", "user_dir")
    ignored = [key for key in typed if key not in used]
    if config.replay is not None and ignored:
        raise UserError(
            f"{ignored[0]}= has no effect with replay=, because the file contains the settings of the run.",
            f"Set only replay= and, if required, {', '.join(used[1:])}.",
        )


@command("seqtk-train", "seqtk.training.config:TrainConfig", recipes=True, check=_check_replay)
def main(config: "TrainConfig") -> None:
    """Train a model, or resume a run: seqtk-train recipe=NAME [key=value …].

    For several devices: torchrun --nproc-per-node 2 -m seqtk.cli.train recipe=NAME.
    """
    if config.replay is not None:
        _replay(config)
        return
    if not (config.max_updates or config.max_epochs):
        raise UserError(
            "recipe=, max_updates= and max_epochs= are not set.",
            "Set a recipe: recipe=NAME. To list the recipes, run seqtk-recipes ls.",
            "Without a recipe, set max_updates or max_epochs, for example max_updates=1000.",
        )
    if config.dry_run:
        from seqtk.training.dry_run import dry_run

        with handling_sigterm(signal.SIG_DFL):
            for line in dry_run(config):
                print(line, flush=True)
        return
    stopped_by = _train(config).signal
    if stopped_by:
        sys.exit(128 + stopped_by)


def _train(config: "TrainConfig") -> "Result":
    """Trains the model. Records errors, so that torchrun reports the process that failed first."""
    from seqtk.training.parallel import LostProcessError
    from seqtk.training.trainer import train

    try:
        return train(config)
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            if isinstance(error, UserError):
                error.__traceback__ = None  # so that torchrun's report contains only the message
            get_error_handler().record_exception(error)
        if not isinstance(error, LostProcessError):
            raise
        print(f"seqtk-train: {error}", file=sys.stderr)  # the process with the error prints the traceback
        sys.exit(1)


def _replay(config: "TrainConfig") -> None:
    """Repeats the update in a replay file, with the settings in the file, and prints its results."""
    import torch

    from seqtk.training.replay import replay

    if config.threads:
        torch.set_num_threads(config.threads)
    for line in replay(config.replay or "", device=config.device):
        print(line)


if __name__ == "__main__":
    main()
