"""Language modelling: a stream of tokens in, nats and bits of each unit of the text out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqtk.data.batch import Batch, collate_blocks
from seqtk.data.blocks import BreakMode, TokenBlocks
from seqtk.data.databin import DataBin
from seqtk.data.vocabulary import Vocabulary
from seqtk.errors import UserError
from seqtk.models import Model, ModelConfig, build_model
from seqtk.tasks.base import Assets, Task, TaskConfig, tasks
from seqtk.tasks.text import open_data, tokenizer_assets, tokenizer_from

_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class LanguageModelingConfig(TaskConfig):
    """A data-bin of one-sided text, as seqtk-preprocess or fairseq-preprocess wrote it, and how samples are cut."""

    data: str = ""  # the data-bin directory; several, with commas, are shards: one an epoch, in turn
    tokens_per_sample: int = 512  # targets in a sample
    break_mode: BreakMode = (
        "none"  # cut anywhere | complete: at lines | complete_doc: and at documents | eos: each line
    )
