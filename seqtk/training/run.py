"""A run from its config to its end, in every process."""

from contextlib import nullcontext

import torch

from seqtk.checkpoint.run_state import Checkpoints
from seqtk.corpora import demo
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import end_world, start_world
from seqtk.training.trainer import Trainer
from seqtk.utils.memory import keep_freed_memory


def run(config: TrainConfig) -> int:
    """Train as `config` says. Returns the number of the signal that stopped it early, or 0.

    The demo corpus is made at its own place if it is missing.
    """
    config.check()
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    world = start_world(config.device)
    try:
        if config.task.data == demo.DESTINATION:
            demo.ensure()
        with Checkpoints(config).locked() if world.is_first else nullcontext():
            return Trainer(config, world=world).fit()
    finally:
        end_world(world)
