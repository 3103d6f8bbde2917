"""The sink that writes metrics to Weights & Biases."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from seqtk.config.fields import setting
from seqtk.training.logging import Metrics, RunInfo, Sink, SinkConfig, sinks
from seqtk.utils.errors import UserError
from seqtk.utils.files import write_text


@dataclass(frozen=True)
class WandbConfig(SinkConfig):
    """Writes to Weights & Biases, with files in save_dir/wandb. Requires the package `wandb`."""

    project: str = setting("seqtk", help="Name of the project.")
    name: str | None = setting(None, help="Name of the run. null: the name of save_dir.")
    mode: Literal["offline", "online"] = setting(
        "offline", help="offline: upload later with `wandb sync`. online: upload during the run; requires a login."
    )


@sinks.register("wandb", WandbConfig)
class Wandb(Sink):
    """Writes all metrics, statistics and samples, with the update as the step. A resumed run keeps its id."""

    @classmethod
    def check(cls) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise UserError(
                "log.sinks=wandb requires wandb, which is not installed.",
                "Install it: pip install 'seqtk-torch[wandb]'",
            )

    def start(self, run: RunInfo) -> None:
        import wandb

        self.handled = sys.exception()  # an exception that the caller handles is not an error of the run
        config, note = self.config, run.save_dir / "wandb" / "id"
        known = note.read_text().strip() if run.resumed_at and note.is_file() else None
        try:
            self.run: Any = wandb.init(
                project=config.project,
                name=config.name or run.save_dir.resolve().name,
                id=known,
                dir=str(run.save_dir),
                mode=config.mode,
                resume="allow" if known else None,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                "log.sinks=wandb: wandb could not start the run.",
                (str(error) or type(error).__name__).splitlines()[0][:200],
                "Run `wandb login`, or log offline: log.sinks=[console,jsonl,{kind: wandb, mode: offline}].",
            ) from error
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, f"{self.run.id}\n")

    def metrics(self, kind: str, update: int, values: Metrics) -> None:
        self.run.log({f"{kind}/{name}": value for name, value in values.items()}, step=update)

    def scalars(self, kind: str, update: int, values: Mapping[str, float]) -> None:
        self.metrics(kind, update, dict(values))

    def text(self, name: str, update: int, markdown: str) -> None:
        self.run.log({f"samples/{name}": markdown}, step=update)

    def histogram(self, name: str, update: int, values: Tensor) -> None:
        import wandb

        self.run.log({name: wandb.Histogram(values.float().cpu().numpy())}, step=update)

    def close(self) -> None:
        self.run.finish(exit_code=0 if sys.exception() is self.handled else 1)
