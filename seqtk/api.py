"""Training from Python: `seqtk.train("multi30k_synth", attention="synthesizer_dense", max_updates=200)`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtk.cli import compose
from seqtk.cli.recipe_files import find_recipe
from seqtk.config.registry import load_plugins
from seqtk.pipelines import Pipeline, load
from seqtk.training.config import TrainConfig
from seqtk.training.trainer import train as run
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class Run:
    """A training run, stored in the folder `save_dir`."""

    save_dir: Path
    stopped_by: int = 0
    """The number of the signal that stopped training before its end, or 0."""

    def load(self, **options: Any) -> Pipeline:
        """Loads the best model of the run or, if there is none, the latest. `options`: see `seqtk.load`."""
        return load(self.save_dir, **options)

    def log(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Returns the entries of the log, `log.jsonl`, or only the entries of one `kind`: "train" or "valid".

        A value that was NaN or infinite is None.
        """
        lines = map(json.loads, (self.save_dir / "log.jsonl").read_text(encoding="utf-8").splitlines())
        return [line for line in lines if kind is None or line["kind"] == kind]


def train(recipe: str | TrainConfig | None = None, /, **overrides: Any) -> Run:
    """Trains a model, or resumes the run in `save_dir`.

    Args:
        recipe: The name or path of a recipe, or a configuration. If it is None, all settings have their defaults.
        **overrides: Settings to change, as on the command line. A nested setting is given by a mapping,
            `task={"data": "data-bin/de_en"}`, or by a dotted key, `**{"task.data": "data-bin/de_en"}`.

    Returns:
        The run. Its method `load()` returns the best model.

    Raises:
        UserError: If a recipe, key or value is invalid, if the model cannot be trained, or if `dry_run` or `replay` is
            set, which only the command supports.
    """
    config = train_config(recipe, **overrides)
    for key in ("dry_run", "replay"):
        if getattr(config, key):
            raise UserError(f"seqtk.train does not support {key}.", "Use the command seqtk-train instead.")
    result = run(config)
    return Run(result.save_dir, result.signal)


def train_config(recipe: str | TrainConfig | None = None, /, **overrides: Any) -> TrainConfig:
    """Returns the configuration that `train` would use."""
    config = recipe if isinstance(recipe, TrainConfig) else TrainConfig()
    layers: list[compose.Layer] = []
    if isinstance(recipe, str):
        path = find_recipe(recipe)
        config, layers = compose.with_default_save_dir(path, config), compose.recipe_layers(path)
    values = [compose.Override(key, value, str(value)) for key, value in overrides.items()]
    load_plugins(compose.text_of("user_dir", layers, values))
    return compose.compose(config, layers, values)
