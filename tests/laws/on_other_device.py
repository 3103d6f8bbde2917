"""Trains and decodes on `tests.other_device` and on the CPU, and prints what differs.

    python -m tests.laws.on_other_device PART

The parts are the functions of `PARTS`. Each yields a line for each fault that it finds.
"""

import dataclasses
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

import seqtk
from seqtk.corpora.demo.corpus import write_corpus
from seqtk.data.batch import Batch, LanguageBatch, TranslationBatch
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.vocabulary import PAD
from seqtk.generation.config import SearchConfig
from seqtk.generation.search import search
from tests import other_device
from tests.laws.graphs import SIZES, VOCABULARY, Case, cases
from tests.other_device import NAME, OnOtherDevice, on_cpu, reads

CPU = torch.device("cpu")
READING = "adaptive"
"""The cases whose training steps wait for the device: an adaptive softmax must count the tokens of each band."""
SEARCHES = [SearchConfig(beam=2, nbest=2, max_length_b=12), SearchConfig(sampling=True, top_k=5, max_length_b=12)]
FIGURES = {"loss", "nll", "ppl", "gnorm"}
MODELS = {"translation": "transformer", "language_modeling": "transformer_lm"}
RARE = re.compile(r"validation\.py, |, (read|collect|monitored|first_bad|restore)$")
"""Matches the functions in which a run waits for the device: in log lines, validations and checkpoints, and in the
first updates of an epoch of streams."""
MOST_READS = 8
"""A search step may wait for the device this many times: to see which hypotheses have ended, and similar."""


def training(device: torch.device) -> Iterator[str]:
    """A training step on the device gives the CPU's loss and gradients, and never waits for the device."""
    for case in cases():
        found = [_step(case, each, dropout=0.0, dtype=None) for each in (CPU, device)]
        names = ("loss", *(name for name, _ in case.step(dropout=0.0).named_parameters()))
        for name, expected, actual in zip(names, *found, strict=True):
            try:
                torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
            except AssertionError as error:
                yield f"{case}: {name}: {error}"
        reads.clear()
        _step(case, device, dropout=0.1, dtype=torch.bfloat16)
        if reads and case.detail != READING:
            yield f"{case}: waits for the device: {reads}"


def decoding(device: torch.device) -> Iterator[str]:
    """Beam search and sampling with every layer find the same on the device as on the CPU."""
    for case in cases():
        batch = case.batch((20, 11, 3))
        prefix_BP = None
        if isinstance(batch, LanguageBatch):
            empty_B0 = torch.zeros(3, 0, dtype=torch.long)
            batch = LanguageBatch(torch.arange(3), 3.0, previous_BT=empty_B0, target_BT=empty_B0)
            prefix_BP = torch.randint(4, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
        elif not isinstance(batch, TranslationBatch):
            continue
        for config in SEARCHES:
            reads.clear()
            found = [
                search(
                    [case.step(dropout=0.0).model.to(each).eval()],
                    _to(batch, each),
                    config,
                    vocabulary=_Vocabulary(),
                    prefix_BP=None if prefix_BP is None else prefix_BP.to(each),
                )
                for each in (CPU, device)
            ]
            tokens = [[[each.tokens for each in row] for row in rows] for rows in found]
            if tokens[0] != tokens[1]:
                yield f"{case}: the CPU finds {tokens[0]}, the device {tokens[1]}"
            steps = max(len(each.tokens) for row in found[1] for each in row)
            if len(reads) > MOST_READS * (steps + 1):
                yield f"{case}: {steps} search steps wait for the device {len(reads)} times: {sorted(set(reads))}"


def runs(device: torch.device) -> Iterator[str]:
    """A run on the device logs the CPU's figures. Between log lines, it never waits for the device."""
    with tempfile.TemporaryDirectory() as folder:
        text, pairs, data = Path(folder, "text"), f"{folder}/pairs", f"{folder}/bytes"
        write_corpus(text, train=300, valid=20, test=20)
        train, valid = str(text / "train"), str(text / "valid")
        languages = {"source_lang": "en", "target_lang": "de", "vocab_size": 300, "workers": 1}
        preprocess(PreprocessConfig(train=train, valid=(valid,), destdir=pairs, **languages))
        preprocess(PreprocessConfig(tokens="bytes", train=f"{train}.en", valid=(f"{valid}.en",), destdir=data))
        averaged = {"ema": {"decay": 0.9}, "update_freq": 2, "batch": {"max_tokens": 600}}
        streamed = {"batch": {"streams": 4}, "precision": "bf16", "attention": {"kind": "performer"}}
        for name, settings in {
            "averaged": {**averaged, "task": {"kind": "translation", "data": pairs}},
            "float16": {"precision": "fp16", "task": {"kind": "translation", "data": pairs}},
            "streamed": {**streamed, "task": {"kind": "language_modeling", "data": data}},
        }.items():
            logs = [_run(f"{folder}/{name}-{each.type}", settings, device=each) for each in (CPU, device)]
            for expected, actual in zip(*logs, strict=True):
                for key in FIGURES & expected.keys():
                    if not math.isclose(expected[key], actual[key], rel_tol=1e-4 if name == "averaged" else 1e-2):
                        yield f"{name}: {key} is {actual[key]} instead of {expected[key]}"
            waits = [read for read in reads if not RARE.search(read)]
            if waits:
                yield f"{name}: training waits for the device: {sorted(set(waits))}"


def _run(folder: str, settings: dict[str, Any], *, device: torch.device) -> list[dict[str, float]]:
    """Trains a tiny model for six updates. Returns the lines of its log."""
    reads.clear()
    with (
        mock.patch("seqtk.training.parallel.local_device", return_value=device),
        mock.patch("seqtk.optim.base.FUSED_DEVICES", ("cpu", NAME)),
    ):
        seqtk.train(
            save_dir=folder,
            model={**SIZES, "dropout": 0.0, "kind": MODELS[settings["task"]["kind"]]},
            max_updates=6,
            log={"every": 3, "sinks": ("jsonl",)},
            validation={"every": 3, "metric": "nll", "decode": False},
            checkpoint={"every": 6},
            **settings,
        )
    return [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]


def _step(case: Case, device: torch.device, *, dropout: float, dtype: torch.dtype | None) -> list[Tensor | None]:
    """Returns the loss and the gradients of a training step. Without dropout, the layers do not use theirs either."""
    step = case.step(dropout=dropout).to(device).train(dropout > 0)
    torch.manual_seed(3)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        total, _, _ = step(_to(case.batch(), device), None)
    total.backward()
    return [on_cpu(total.detach()), *(on_cpu(parameter.grad) for parameter in step.parameters())]


def _to(batch: Batch, device: torch.device) -> Any:
    tensors = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return dataclasses.replace(batch, **tensors)


class _Vocabulary:
    never_generated: ClassVar = [PAD, 0, 3]


PARTS: dict[str, Callable[[torch.device], Iterator[str]]] = {
    "training": training,
    "decoding": decoding,
    "runs": runs,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    other = other_device.register()
    with OnOtherDevice():
        for fault in PARTS[sys.argv[1]](other):
            print(fault, flush=True)
