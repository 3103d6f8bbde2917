"""Finds the batch size that fits into memory, for `batch.max_tokens=auto` and `update_freq=auto`.

The search runs forward and backward passes, without updates, for increasing batch sizes: with the longest examples, and
with examples of median length. On a GPU, it measures the peak of the allocated memory and uses at most 90% of the free
memory. On a CPU, it estimates the peak as twice the size of the tensors stored for the backward pass, to allow for
temporary tensors, and uses at most half of the free memory. A resumed run uses the size in its checkpoint.

N examples, D sides of an example (source and target, or one).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from seqtk.checkpoint import model_file
from seqtk.checkpoint.run_state import latest_checkpoint
from seqtk.data.batch import Batch, Dataset
from seqtk.data.mixing import lengths_of_run
from seqtk.data.plan import BatchingConfig, IndexArray, SizeArray, is_auto
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import TrainStep
from seqtk.utils.errors import UserError, is_out_of_memory

if TYPE_CHECKING:
    from seqtk.training.trainer import Trainer

CPU_TOKENS, GPU_TOKENS = 4096, 131_072
"""The maximum number of tokens in a batch. Larger batches are not faster."""
MIN_BATCHES = 8
"""An epoch has at least this many batches, unless `batch.tokens_per_update` or an example requires larger ones."""


def settled(run: "Trainer") -> TrainConfig:
    """Returns the run's config with `auto` replaced by numbers in `batch.max_tokens` and `update_freq`.

    All processes return the same config. The train step of the run is not yet compiled or wrapped.

    Raises:
        UserError: If the free memory of the device is unknown, or if the longest example does not fit into memory or
            into `batch.tokens_per_update`.
    """
    config, engine = run.config, run.engine
    batch, update_freq, total = config.batch, config.update_freq, config.batch.tokens_per_update
    micro_batches = engine.size * (1 if is_auto(update_freq) else update_freq)
    limit = None if total is None else ceil(total / micro_batches)
    tokens = batch.max_tokens
    if is_auto(tokens):
        saved, longest = _saved_max_tokens(Path(config.save_dir)), _longest(run.train_sets, batch)
        if not saved and limit is not None and limit < longest:
            raise UserError(
                f"batch.tokens_per_update={total} is too small for the longest example, which has {longest:,} tokens.",
                f"Set batch.tokens_per_update to {micro_batches * longest} or more, or batch.max_length={limit}.",
            )
        found = saved or min(engine.gather(_largest(run, least=longest, limit=limit)))
        tokens = found if limit is None or saved else max(ceil(limit / ceil(limit / found)), longest)
    if is_auto(update_freq):
        assert total is not None
        assert tokens is not None
        update_freq = max(1, round(total / (engine.size * tokens)))
    return replace(config, batch=replace(batch, max_tokens=tokens), update_freq=update_freq)


def _longest(train_sets: Sequence[Dataset], config: BatchingConfig) -> int:
    """Returns the length of the longest example that is not longer than `batch.max_length`.

    With several corpora, all examples of each corpus count, because later epochs may read them.
    """
    longest_N = np.concatenate([lengths_of_run(examples).max(axis=1) for examples in train_sets])
    return int(longest_N[longest_N <= (config.max_length or np.inf)].max(initial=0))


def _saved_max_tokens(save_dir: Path) -> int | None:
    """Returns `batch.max_tokens` of the run's newest intact checkpoint, or None if there is no checkpoint."""
    latest = latest_checkpoint(save_dir)
    for folder in () if latest is None else (latest, *reversed(model_file.checkpoint_folders(save_dir))):
        try:
            tokens = model_file.read_metadata(folder / "model.safetensors")["config"]["batch"]["max_tokens"]
        except (UserError, KeyError):  # damaged: the run resumes from an older checkpoint
            continue
        return tokens if isinstance(tokens, int) else None
    return None


def _largest(run: "Trainer", *, least: int, limit: int | None) -> int:
    """Returns the number of tokens of the largest batch that fits into memory.

    It is at least `least`, the number of tokens of the longest example, and at most `limit` if it is not None.
    """
    device, step = run.engine.device, run.step
    free = available_memory(device)
    if free is None:
        raise UserError(
            "batch.max_tokens=auto: the free memory of this device is not known.",
            "Set batch.max_tokens to a number of tokens.",
        )
    train_set = max(run.train_sets, key=lambda examples: int(examples.sizes_ND.max(initial=0)))
    longest_N = train_set.sizes_ND.max(axis=1)
    order_N = np.argsort(-longest_N, kind="stable")
    order_N = order_N[longest_N[order_N] <= (run.config.batch.max_length or np.inf)]
    if not len(order_N):
        return limit or CPU_TOKENS  # there is no usable example, so `check_run` will raise an error
    most = limit or max(int(longest_N.sum()) // MIN_BATCHES, least)
    most = max(min(most, GPU_TOKENS if device.type == "cuda" else CPU_TOKENS), least)
    if device.type == "cuda":
        budget = 0.9 * free - _optimizer_bytes(step)
    else:
        budget = 0.5 * free / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 2 * _optimizer_bytes(step)
    size, fitting = min(max(least, 1024), most), 0
    while True:
        used = _bytes(run, train_set, order_N, longest_N, size)
        if used is None:
            break
        fitting = int(min(size * budget / max(used, 1), most))
        if fitting <= 4 * size:
            break
        size = min(4 * size, most)
    if fitting < least:
        raise UserError(
            f"batch.max_tokens=auto: one example of {least:,} tokens does not fit into memory.",
            f"Set batch.max_length to less than {least}, set model.recompute_blocks=all, or use a smaller model.",
        )
    return fitting


def _bytes(run: "Trainer", train_set: Dataset, order_N: IndexArray, longest_N: SizeArray, size: int) -> int | None:
    """Returns the number of bytes that a batch of `size` tokens requires, or None if it does not fit into memory.

    Measures a batch of the longest examples and a batch of examples of median length, and returns the maximum.

    Args:
        run: The run.
        train_set: The examples of which batches are measured.
        order_N: The indices of the usable examples, from the longest to the shortest.
        longest_N: The length of each example, or of its longer side if it has two sides.
        size: The number of tokens.
    """
    device, used = run.engine.device, [0]
    for start in (0, len(order_N) // 2):
        most_rows = run.config.batch.max_sentences or size
        rows = max(min(size // max(int(longest_N[order_N[start]]), 1), most_rows), 1)
        indices = np.resize(order_N[start:], rows).tolist()
        batch = run.task.collate([train_set[index] for index in indices]).to(device)
        try:
            used.append(_pass(run.step, batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            run.step.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return max(used)


def _pass(step: TrainStep, batch: Batch) -> int:
    """Runs a forward and a backward pass. Returns the peak of the memory that the passes allocate, in bytes."""
    device = batch.ids_B.device
    step.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type != "cuda":
            with saved_bytes(step) as saved:
                step(batch)[0].backward()
            return 2 * sum(saved.values())
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(batch)[0].backward()
        return torch.cuda.max_memory_allocated(device) - before


def _optimizer_bytes(step: TrainStep) -> int:
    """Returns the size in bytes of Adam's two moments for all trainable weights. (`_pass` measures the gradients.)"""
    return 2 * sum(weight.numel() * weight.element_size() for weight in step.parameters() if weight.requires_grad)


def available_memory(device: torch.device) -> int | None:
    """Returns the number of bytes that this process can still use on a device, or None if it is unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        try:
            return int(torch.cuda.mem_get_info(device)[0]) + cached
        except RuntimeError:  # as on some AMD GPUs in containers: "HIP error: invalid argument"
            return None
    limits = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # the limit of a container; "max" if it has none
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        limits.append(max(int((group / "memory.max").read_text()) - used, 0))
    return min(limits, default=None) if device.type == "cpu" else None


@contextmanager
def saved_bytes(module: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Context manager that yields a dict: address → size of each tensor that is saved for the backward pass.

    Weights are not counted, and neither are the full weights that `fully_shard` gathers for a block.
    """
    whole = [parameter for parameter in module.parameters() if not hasattr(parameter, "to_local")]
    own = {parameter.untyped_storage().data_ptr() for parameter in whole}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        is_weight = isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)
        if not is_weight and storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved
