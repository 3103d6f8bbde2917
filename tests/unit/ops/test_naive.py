"""The fast form and the naive form of every operation give equal outputs and gradients.

The sizes cover every path: one chunk and several chunks, an incomplete last chunk, all heads at once and in groups.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import seqtk.ops
from seqtk.ops import (
    aft,
    block_pattern,
    blockwise_softmax,
    cache,
    depthwise,
    distance_bias,
    dot_product,
    dropout,
    ema,
    head_checkpoint,
    linear_cross_entropy,
    lsh,
    residual,
    rotary,
    row_linear,
    scan,
)
from seqtk.ops.blockwise_softmax import LogitSpec, LogitTensors
from seqtk.ops.dispatch import naive_mode, naive_ops
from seqtk.ops.tensors import once_for
from seqtk.testing.subject import assert_close

Operation = Callable[..., Tensor | tuple[Tensor, ...]]


@pytest.fixture(autouse=True)
def fast_forms() -> Iterator[None]:
    """Enables the fast forms, also under SEQTK_NAIVE=1."""
    torch.manual_seed(0)
    with naive_ops(False):
        yield


def assert_forms_agree(
    operation: Operation, *shapes: tuple[int, ...], scale: float = 1.0, tolerance: float = 1e-10
) -> None:
    """Compares outputs and gradients of both forms on random float64 inputs of the given shapes."""
    inputs = [(scale * torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes]
    found, weights = [], None
    for naive in (False, True):
        with naive_ops(naive):
            outputs = operation(*inputs)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            weights = weights or [torch.randn_like(y) for y in outputs]
            total = sum((y * weight).sum() for y, weight in zip(outputs, weights, strict=True) if y.requires_grad)
            found.append([*outputs, *torch.autograd.grad(total, inputs)])  # type: ignore[arg-type]
    for fast, right in zip(*found, strict=True):
        assert_close(fast, right, tolerance)


def assert_bfloat16_is_close(
    operation: Operation, *shapes: tuple[int, ...], tolerance: float, autocast: bool = True
) -> None:
    """Compares the fast form on bfloat16 inputs with the naive form on the same inputs in float32."""
    inputs = [torch.randn(shape).bfloat16() for shape in shapes]
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        outputs = operation(*inputs)
    with naive_ops():
        right = operation(*(x.float() for x in inputs))
    outputs, right = ((y,) if isinstance(y, Tensor) else y for y in (outputs, right))
    for fast, exact in zip(outputs, right, strict=True):
        assert (fast.float() - exact).norm() <= tolerance * exact.norm()


def padding(batch: int, length: int) -> Tensor:
    """Returns the padding mask of up to three rows: without padding, with a third of padding, with padding only."""
    start_B1 = torch.tensor([length, 2 * length // 3, 0])[:batch, None]
    return torch.arange(length) >= start_B1


class TestBlockwiseSoftmax:
    """Logits from queries and from a table. 300 positions exceed SHORT, so that a CPU computes them in blocks."""

    HEADS = 3

    def spec(self, kind: str, query_BHTR: Tensor, key_1HRS: Tensor, table_1HTS: Tensor) -> LogitSpec:
        product = LogitSpec(
            lambda tensors, columns: tensors.by_query[0] @ tensors.by_key[0][..., :columns],
            LogitTensors((query_BHTR,), (key_1HRS,)),
        )
        table = LogitSpec(blockwise_softmax.table, LogitTensors(by_both=(table_1HTS,)))
        if kind == "sum":
            return blockwise_softmax.sum_logits([table.scaled(0.5), product.scaled(2.0), table])
        if kind == "shared":
            return dataclasses.replace(product, tensors=LogitTensors((query_BHTR[:1],), (key_1HRS,)))
        return {"product": product, "table": table}[kind]

    def shapes(self, length: int, batch: int = 3) -> list[tuple[int, ...]]:
        heads = self.HEADS
        return [(batch, heads, length, 2), (1, heads, 2, length), (1, heads, length, length), (batch, heads, length, 4)]

    @pytest.mark.parametrize("length", [5, 100, 300])
    @pytest.mark.parametrize("causal", [False, True], ids=["whole", "causal"])
    @pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
    @pytest.mark.parametrize("kind", ["product", "shared", "table", "sum"])
    def test_fast_and_naive_forms_agree(self, kind: str, padded: bool, causal: bool, length: int) -> None:
        pad_BS = padding(3, length) if padded else None

        def operation(query: Tensor, key: Tensor, table: Tensor, value: Tensor) -> Tensor:
            spec = self.spec(kind, query, key, table)
            used = 0 * (query.sum() + key.sum() + table.sum())  # so that every input has a gradient
            block = 3 * length * 40  # 40 rows of one head
            return used + blockwise_softmax.blockwise_softmax(spec, value, pad_BS=pad_BS, causal=causal, block=block)

        assert_forms_agree(operation, *self.shapes(length))

    def test_forms_agree_with_several_heads_in_a_block(self) -> None:
        def operation(query: Tensor, key: Tensor, table: Tensor, value: Tensor) -> Tensor:
            spec = self.spec("product", query, key, table)
            return 0 * table.sum() + blockwise_softmax.blockwise_softmax(spec, value, causal=True)

        assert_forms_agree(operation, *self.shapes(300, batch=1))

    def test_forms_agree_if_padding_has_the_largest_logits(self) -> None:
        """Relative to the exponentials of padding, the exponentials of tokens round to 0."""
        pad_BS = padding(2, 100)

        def operation(table: Tensor, value: Tensor) -> Tensor:
            table = table + 200.0 * pad_BS[1]
            spec = LogitSpec(blockwise_softmax.table, LogitTensors(by_both=(table,)))
            return blockwise_softmax.blockwise_softmax(spec, value, pad_BS=pad_BS)

        assert_forms_agree(operation, (1, 2, 100, 100), (2, 2, 100, 3))

    @pytest.mark.parametrize("length", [20, 300])
    def test_bfloat16_inputs_are_summed_in_float32(self, length: int) -> None:
        def operation(table: Tensor, value: Tensor) -> Tensor:
            spec = LogitSpec(blockwise_softmax.table, LogitTensors(by_both=(table,)))
            y_BHTE = blockwise_softmax.blockwise_softmax(spec, value, causal=True)
            assert y_BHTE.dtype is torch.float32
            return y_BHTE

        assert_bfloat16_is_close(operation, (1, 2, length, length), (2, 2, length, 4), tolerance=1e-6)


class TestBlockwiseDropout:
    """Uses the identity matrix as values, so that the output equals the weights after dropout."""

    RATE, LENGTH = 0.25, 300

    def run(self, logits_BHTS: Tensor, value_BHSE: Tensor, *, seed: int = 1, causal: bool = False) -> Tensor:
        # The logits depend on queries, because logits from a table are computed in blocks only if causal.
        spec = LogitSpec(lambda tensors, columns: 1 * tensors.by_query[0][..., :columns], LogitTensors((logits_BHTS,)))
        torch.manual_seed(seed)
        block = 2 * self.LENGTH * 50  # 50 rows of one head
        return blockwise_softmax.blockwise_softmax(spec, value_BHSE, dropout=self.RATE, causal=causal, block=block)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        logits_BHTS = torch.randn(2, 2, self.LENGTH, self.LENGTH, dtype=torch.float64, requires_grad=True)
        value_BHSE = torch.randn(2, 2, self.LENGTH, self.LENGTH, dtype=torch.float64, requires_grad=True)
        identity_BHSS = torch.eye(self.LENGTH, dtype=torch.float64).expand(2, 2, -1, -1)
        return logits_BHTS, value_BHSE, identity_BHSS

    @pytest.mark.parametrize("causal", [False, True], ids=["whole", "causal"])
    def test_backward_uses_the_mask_of_forward(self, causal: bool) -> None:
        logits_BHTS, value_BHSE, identity_BHSS = self.inputs()
        kept_BHTS = self.run(logits_BHTS, identity_BHSS, causal=causal).detach()
        seen_TS = torch.ones(self.LENGTH, self.LENGTH, dtype=torch.bool).tril() if causal else torch.tensor(True)
        weights_BHTS = logits_BHTS.masked_fill(~seen_TS, -torch.inf).softmax(-1)
        mask_BHTS = (kept_BHTS != 0).double() / (1 - self.RATE)
        right_BHTE = (weights_BHTS * mask_BHTS) @ value_BHSE
        fast_BHTE = self.run(logits_BHTS, value_BHSE, causal=causal)
        assert_close(fast_BHTE, right_BHTE)
        gradients = [
            torch.autograd.grad((y * y.detach()).sum(), [logits_BHTS, value_BHSE]) for y in (fast_BHTE, right_BHTE)
        ]
        for fast, right in zip(*gradients, strict=True):
            assert_close(fast, right)

    def test_blocks_have_different_masks(self) -> None:
        logits_BHTS, _, identity_BHSS = self.inputs()
        dropped_BHTS = self.run(logits_BHTS, identity_BHSS) == 0
        blocks = [dropped_BHTS[:, head, row : row + 50] for head in range(2) for row in range(0, self.LENGTH, 50)]
        for number, block in enumerate(blocks):
            for other in blocks[:number]:
                both = float((block & other).double().mean())
                assert abs(both - self.RATE**2) < 0.02, "masks of two blocks are not independent"

    def test_seed_determines_the_dropout_mask(self) -> None:
        logits_BHTS, _, identity_BHSS = self.inputs()
        first, again, other = (self.run(logits_BHTS, identity_BHSS, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("naive", [False, True], ids=["fast", "naive"])
    def test_dropout_keeps_the_expected_output(self, naive: bool) -> None:
        logits_BHTS, _, identity_BHSS = self.inputs()
        with naive_ops(naive):
            kept_BHTS = self.run(logits_BHTS, identity_BHSS)
        ratio_BHTS = (kept_BHTS / logits_BHTS.softmax(-1)).detach()
        assert abs(float(ratio_BHTS.mean()) - 1) < 0.01
        assert abs(float((ratio_BHTS == 0).double().mean()) - self.RATE) < 0.01


class TestHeadCheckpoint:
    """Computes cumulative sums of projected heads over few positions, and over 2048, which is MIN_LENGTH."""

    @pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
    @pytest.mark.parametrize("length", [5, 2048])
    @pytest.mark.parametrize("heads_at_once", [1, 3, 4])
    def test_fast_and_naive_forms_agree(
        self, heads_at_once: int, length: int, bias: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(head_checkpoint.CHUNK_ELEMENTS, "cpu", heads_at_once * 2 * length)
        groups: list[slice] = []

        def operation(x_BTI: Tensor, y_BTD: Tensor, weight: Tensor, bias_D: Tensor, extra_H: Tensor) -> Tensor:
            linear = nn.Linear(3, 8, bias=bias, dtype=torch.float64)
            del linear.weight
            linear.weight = weight  # type: ignore[assignment]
            if bias:
                del linear.bias
                linear.bias = bias_D

            def function(some: slice, a_BTd: Tensor, b_BTd: Tensor) -> Tensor:
                groups.append(some)
                scale_d = extra_H[some].repeat_interleave(2)
                return (a_BTd * b_BTd * scale_d).cumsum(1) / length + a_BTd.sin()

            project = head_checkpoint.LazyProjection(x_BTI, linear)
            y = head_checkpoint.checkpoint_over_heads(function, project, y_BTD, heads=4, extra_params=[extra_H])
            return y + 0 * bias_D.sum()

        assert_forms_agree(operation, (1, length, 3), (1, length, 8), (8, 3), (8,), (4,))
        assert (slice(0, 1) in groups) == (heads_at_once == 1 and length == 2048)


class TestScan:
    @pytest.mark.parametrize("length", [1, 5, 64, 65, 200])
    def test_fast_and_naive_forms_agree(self, length: int) -> None:
        assert_forms_agree(scan.causal_sums, (2, 3, length, 5), (2, 3, length, 5), (2, 3, length, 7))

    @pytest.mark.parametrize("length", [3, 4, 5, 8, 11])
    def test_forms_agree_with_a_different_chunk_size(self, length: int) -> None:
        def operation(*qkv: Tensor) -> Tensor:
            return scan.causal_sums(*qkv, chunk=4)

        assert_forms_agree(operation, (2, 3, length, 5), (2, 3, length, 5), (2, 3, length, 7))

    def test_bfloat16_inputs_are_summed_in_float32(self) -> None:
        def operation(*qkv: Tensor) -> Tensor:
            y_BHTE = scan.causal_sums(*qkv)
            assert y_BHTE.dtype is torch.float32
            return y_BHTE

        assert_bfloat16_is_close(operation, *[(1, 2, 2000, 4)] * 3, tolerance=1e-5)


class TestAft:
    """Keys with a standard deviation of up to 30, so that exponentials are very small and very large."""

    def both(self, sums: aft.LogSumExpAccumulator) -> tuple[Tensor, Tensor]:
        """Returns the log of the sum of weights and the mean, which do not depend on the internal scale."""
        return sums.log, sums.mean

    @pytest.mark.parametrize("size", [1.0, 30.0])
    @pytest.mark.parametrize("length", [1, 5, 8, 100])
    def test_fast_and_naive_cumulative_sums_agree(self, length: int, size: float) -> None:
        def operation(key_TD: Tensor, value_TD: Tensor) -> tuple[Tensor, Tensor]:
            return self.both(aft.cumulative(aft.LogSumExpAccumulator.of(size * key_TD, value_TD)))

        assert_forms_agree(operation, (2, length, 3), (2, length, 3))

    @pytest.mark.parametrize("length", [1, 5, 100])
    def test_fast_and_naive_accumulate_agree(self, length: int) -> None:
        def operation(weight_TS: Tensor, key_SD: Tensor, value_SD: Tensor) -> tuple[Tensor, Tensor]:
            return self.both(aft.accumulate(weight_TS.sigmoid(), 10 * key_SD, value_SD))

        assert_forms_agree(operation, (7, length), (2, length, 3), (2, length, 3))

    @pytest.mark.parametrize("before", [False, True], ids=["alone", "with_a_past"])
    @pytest.mark.parametrize("length", [1, 2, 5, 8, 64, 100])
    def test_fast_and_naive_causal_accumulate_agree(self, length: int, before: bool) -> None:
        def operation(weight_TT: Tensor, key_TD: Tensor, value_TD: Tensor, *past: Tensor) -> tuple[Tensor, Tensor]:
            total_TD, sum_TD = past
            scale_TD = 30 * torch.linspace(-1, 1, length, dtype=torch.float64).view(1, length, 1).expand(2, -1, 3)
            past_sums = aft.LogSumExpAccumulator(scale_TD, total_TD.exp(), sum_TD)
            sums = aft.accumulate_causal(
                weight_TT.sigmoid(), 30 * key_TD, value_TD, before=past_sums if before else None
            )
            log_TD, mean_TD = self.both(sums)
            return log_TD + 0 * total_TD, mean_TD + 0 * sum_TD

        assert_forms_agree(operation, (length, length), *[(2, length, 3)] * 4)


class TestLsh:
    CHUNK = 4

    def rounds(self, length: int, *, causal: bool) -> lsh.HashRounds:
        """Returns three hash rounds with three buckets, for two sequences and two heads."""
        bucket_BHRT = torch.randint(3, (2, 2, 3, length))
        return lsh.HashRounds.sort(bucket_BHRT, chunk=self.CHUNK, causal=causal)

    @pytest.mark.parametrize("piece", [1, 2**19])
    @pytest.mark.parametrize("causal", [False, True], ids=["whole", "causal"])
    @pytest.mark.parametrize("length", [4, 12, 100])
    def test_fast_and_naive_forms_agree(
        self, length: int, causal: bool, piece: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(lsh.CHUNK_LOGITS, "cpu", piece)
        rounds = self.rounds(length, causal=causal)
        assert_forms_agree(
            lambda query, value: lsh.lsh_attention(query, value, rounds), (4 * length, 3), (4 * length, 3)
        )

    @pytest.mark.parametrize("causal", [False, True], ids=["whole", "causal"])
    def test_fast_and_naive_forms_agree_with_dropout(self, causal: bool) -> None:
        rounds = self.rounds(60, causal=causal)
        # This probability is so small that nothing is dropped.
        assert_forms_agree(
            lambda query, value: lsh.lsh_attention(query, value, rounds, dropout=1e-12), (240, 3), (240, 3)
        )

    @pytest.mark.parametrize("naive", [False, True], ids=["fast", "naive"])
    def test_dropout_keeps_the_expected_output(self, naive: bool) -> None:
        rounds, (query_XE, value_XE) = self.rounds(12, causal=False), torch.randn(2, 48, 3)
        with naive_ops(naive):
            draws = torch.stack([lsh.lsh_attention(query_XE, value_XE, rounds, dropout=0.5) for _ in range(400)])
            right_XE = lsh.lsh_attention(query_XE, value_XE, rounds)
        assert not torch.equal(draws[0], draws[1])
        error_XE = draws.mean(0) - right_XE
        assert float((error_XE / (draws.std(0) / 20 + 1e-6)).abs().max()) < 6


class TestBlockPattern:
    WINDOWS: ClassVar = {
        "before": block_pattern.WindowSpec(4, before=1, after=0, farthest_ahead=0),
        "around": block_pattern.WindowSpec(4, before=1, after=1),
        "near": block_pattern.WindowSpec(4, before=2, after=1, farthest_back=5, farthest_ahead=3),
        "own": block_pattern.WindowSpec(3, before=0, after=0),
    }

    @pytest.mark.parametrize("length", [3, 8, 50, 203])
    @pytest.mark.parametrize("first", [0, 1, 6])
    @pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
    @pytest.mark.parametrize("window", WINDOWS)
    def test_fast_and_naive_forms_agree(self, window: str, padded: bool, first: int, length: int) -> None:
        first = min(first, length)
        pad_BT = padding(2, length) if padded else None

        def operation(query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor) -> Tensor:
            mask = block_pattern.WindowMask(self.WINDOWS[window], query_BTD, pad_BT, first)
            y_BTD = block_pattern.window_attention(query_BTD, key_BTD, value_BTD, mask, head_dim=3)
            return y_BTD if pad_BT is None else y_BTD.masked_fill(pad_BT[..., None], 0)

        assert_forms_agree(operation, *[(2, length, 6)] * 3)


class TestDotProduct:
    BIASES: ClassVar[dict[str, Callable[[Tensor], Tensor | None]]] = {
        "none": lambda bias_BHTS: None,
        "bias": lambda bias_BHTS: bias_BHTS,
        "mask": lambda bias_BHTS: bias_BHTS > 0,
        "bias_with_a_mask": lambda bias_BHTS: bias_BHTS[:1].masked_fill(bias_BHTS[:1] > 1, -torch.inf),
    }

    @pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (5, 7), (70, 130)])
    @pytest.mark.parametrize("kv_heads", [1, 2, 4])
    @pytest.mark.parametrize("bias", BIASES)
    def test_fast_and_naive_forms_agree(self, bias: str, kv_heads: int, queries: int, keys: int) -> None:
        def operation(query: Tensor, key: Tensor, value: Tensor, bias_BHTS: Tensor) -> Tensor:
            return 0 * bias_BHTS.sum() + dot_product.attend(query, key, value, bias=self.BIASES[bias](bias_BHTS))

        assert_forms_agree(
            operation, (2, 4, queries, 6), (2, kv_heads, keys, 6), (2, kv_heads, keys, 5), (2, 4, queries, keys)
        )

    @pytest.mark.parametrize("length", [5, 130])
    def test_fast_and_naive_causal_and_scaled_forms_agree(self, length: int) -> None:
        def operation(*qkv: Tensor) -> Tensor:
            return dot_product.attend(*qkv, causal=True, scale=0.7)

        assert_forms_agree(operation, (2, 4, length, 6), (2, 2, length, 6), (2, 2, length, 6))

    def test_bfloat16_inputs_are_summed_in_float32(self) -> None:
        assert_bfloat16_is_close(dot_product.attend, (2, 4, 9, 16), (2, 2, 300, 16), (2, 2, 300, 16), tolerance=1e-6)

    @pytest.mark.parametrize("naive", [False, True], ids=["fast", "naive"])
    def test_dropout_keeps_the_expected_output(self, naive: bool) -> None:
        query, key = torch.randn(2, 1, 2, 40, 6)
        identity = torch.eye(40)[None, None].expand(1, 2, -1, -1)
        with naive_ops(naive):
            right = dot_product.attend(query, key, identity)
            kept = torch.stack([dot_product.attend(query, key, identity, dropout=0.25) for _ in range(20)])
        assert abs(float((kept / right).mean()) - 1) < 0.02
        assert abs(float((kept == 0).float().mean()) - 0.25) < 0.02


class TestCache:
    """Runs a few decoding steps, and more than twice as many as fit into the short tensor of the cache."""

    STEPS = 2 * cache.RECENT + 3

    def filled(self, key_BKSE: Tensor, value_BKSE: Tensor) -> cache.Cache:
        state = cache.empty("key", "value")
        for key_BK1E, value_BK1E in zip(key_BKSE.split(1, 2), value_BKSE.split(1, 2), strict=True):
            state = cache.remember(state, key=key_BK1E, value=value_BK1E)
        assert len(cache.segments(state, "key")) == (1 if naive_mode() or key_BKSE.shape[2] < cache.RECENT else 2)
        assert cache.length(state, "key") == key_BKSE.shape[2]
        return state

    @pytest.mark.parametrize("steps", [3, STEPS])
    @pytest.mark.parametrize("kv_heads", [1, 2, 4])
    def test_fast_and_naive_forms_agree(self, kv_heads: int, steps: int) -> None:
        def operation(query_BH1E: Tensor, key_BKSE: Tensor, value_BKSE: Tensor) -> tuple[Tensor, ...]:
            state = self.filled(key_BKSE, value_BKSE)
            logits_BH1S = cache.compare(query_BH1E, state)
            picked = cache.picked(state, "key", first=1, stride=2)
            return logits_BH1S, cache.average(logits_BH1S, state), dot_product.attend_last(query_BH1E, state), picked

        assert_forms_agree(operation, (2, 4, 1, 6), (2, kv_heads, steps, 6), (2, kv_heads, steps, 5))

    @pytest.mark.parametrize("steps", [3, STEPS])
    def test_attend_last_equals_attention(self, steps: int) -> None:
        def operation(query_BH1E: Tensor, key_BKSE: Tensor, value_BKSE: Tensor, bias: Tensor) -> Tensor:
            if naive_mode():
                return dot_product.naive(query_BH1E, key_BKSE, value_BKSE, bias=bias)
            return dot_product.attend_last(query_BH1E, self.filled(key_BKSE, value_BKSE), bias=bias)

        assert_forms_agree(operation, (2, 4, 1, 6), (2, 2, steps, 6), (2, 2, steps, 5), (2, 4, 1, steps))

    def test_bfloat16_inputs_are_summed_in_float32(self) -> None:
        def compare(query_BH1E: Tensor, key_BKSE: Tensor) -> Tensor:
            return cache.compare(query_BH1E, self.filled(key_BKSE, key_BKSE))

        def attend(query_BH1E: Tensor, key_BKSE: Tensor, value_BKSE: Tensor) -> Tensor:
            return dot_product.attend_last(query_BH1E, self.filled(key_BKSE, value_BKSE))

        assert_bfloat16_is_close(compare, (2, 4, 1, 64), (2, 2, self.STEPS, 64), tolerance=1e-6)
        # Averages have the precision of the values.
        assert_bfloat16_is_close(attend, (2, 4, 1, 64), *[(2, 2, self.STEPS, 64)] * 2, tolerance=2**-8)


class TestRotary:
    @pytest.mark.parametrize("length", [1, 5, 300])
    def test_fast_and_naive_forms_agree(self, length: int) -> None:
        position_BT = torch.stack([torch.arange(length), 3 * torch.arange(length)])
        assert_forms_agree(lambda x_BHTE: rotary.rotate(x_BHTE, position_BT), (2, 3, length, 8))

    def test_bfloat16_input_is_rotated_in_float32(self) -> None:
        position_BT = torch.arange(1000)[None]
        assert_bfloat16_is_close(lambda x_BHTE: rotary.rotate(x_BHTE, position_BT), (1, 2, 1000, 8), tolerance=2**-8)


class TestDistanceBias:
    @pytest.mark.parametrize("causal", [False, True], ids=["whole", "causal"])
    @pytest.mark.parametrize("length", [1, 2, 5, 200])
    def test_fast_and_naive_forms_agree(self, length: int, causal: bool) -> None:
        starts = torch.tensor(distance_bias.bucket_starts(8, 64))

        def operation(table_HN: Tensor) -> Tensor:
            def bias_of(distance: Tensor) -> Tensor:
                side = (distance > 0) * (len(starts) + 1)
                return table_HN[:, torch.bucketize(distance.abs(), starts, right=True) + side]

            bias_1HTT = distance_bias.pairwise_bias(bias_of, length, causal=causal, device=table_HN.device)
            return bias_1HTT.clamp(min=-1e9)

        assert_forms_agree(operation, (3, 2 * len(starts) + 2))


class TestDepthwise:
    @pytest.mark.parametrize(("before", "after", "stride"), [(0, 0, 1), (2, 0, 1), (1, 1, 2), (3, 4, 3)])
    @pytest.mark.parametrize("length", [3, 10, 300])
    def test_fast_and_naive_forms_agree(self, length: int, before: int, after: int, stride: int) -> None:
        def operation(x_BTD: Tensor, kernel_HK: Tensor) -> Tensor:
            return depthwise.depthwise(x_BTD, kernel_HK, before=before, after=after, stride=stride)

        assert_forms_agree(operation, (2, length, 6), (3, 3))

    def test_bfloat16_stays_near_float32(self) -> None:
        def operation(x_BTD: Tensor, kernel_HK: Tensor) -> Tensor:
            return depthwise.depthwise(x_BTD, kernel_HK, before=30, after=0)

        assert_bfloat16_is_close(operation, (2, 300, 6), (3, 31), tolerance=0.01, autocast=False)


class TestEma:
    @pytest.mark.parametrize("length", [1, 5, 32, 33, 64, 300])
    def test_fast_and_naive_forms_agree(self, length: int) -> None:
        def operation(x_BTD: Tensor, decay_DN: Tensor, in_DN: Tensor, out_DN: Tensor) -> Tensor:
            return ema.damped_average(x_BTD, (4 + decay_DN).sigmoid().log(), in_DN, out_DN)

        assert_forms_agree(operation, (2, length, 3), (3, 2), (3, 2), (3, 2))


class TestDropout:
    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
    @pytest.mark.parametrize("naive", [False, True], ids=["fast", "naive"])
    def test_dropout_keeps_the_mean(self, naive: bool, rate: float) -> None:
        x = torch.full((1000, 333), 2.0, dtype=torch.float64, requires_grad=True)
        with naive_ops(naive):
            y = dropout.dropout(x, rate)
        assert abs(float((y == 0).double().mean()) - rate) < 0.005
        assert_close(y.detach()[y != 0], torch.tensor(2 / (1 - rate)).double().expand(int((y != 0).sum())), 0.02)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert_close(gradient, y.detach() / 2)

    @pytest.mark.parametrize("naive", [False, True], ids=["fast", "naive"])
    def test_seed_determines_the_dropout_mask(self, naive: bool) -> None:
        x, draws = torch.ones(40), []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            with naive_ops(naive):
                draws.append(dropout.dropout(x, 0.5))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])

    def test_elements_are_dropped_independently(self) -> None:
        kept = dropout.keep_mask(torch.ones(10**5), 0.5) > 0
        for distance in (1, 2, 4):  # four elements share a random number
            assert abs(float((kept[distance:] & kept[:-distance]).double().mean()) - 0.25) < 0.01


class TestLinearCrossEntropy:
    """2049 positions with 2048 tokens have more logits than CHUNK_LOGITS."""

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    @pytest.mark.parametrize(("positions", "vocabulary"), [(1, 2), (7, 11), (2049, 2048)])
    def test_fast_and_naive_forms_agree(self, positions: int, vocabulary: int, label_smoothing: float) -> None:
        target_N = torch.randint(vocabulary, (positions,))

        def operation(features_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
            return linear_cross_entropy.linear_cross_entropy(
                features_ND, weight_VD, target_N, label_smoothing=label_smoothing
            )

        assert_forms_agree(operation, (positions, 3), (vocabulary, 3), tolerance=1e-9)

    def test_bfloat16_inputs_are_summed_in_float32(self) -> None:
        target_N = torch.randint(512, (9000,))

        def operation(features_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
            return linear_cross_entropy.linear_cross_entropy(features_ND, weight_VD, target_N)

        # The logits are bfloat16 numbers, with about three digits.
        assert_bfloat16_is_close(operation, (9000, 8), (512, 8), tolerance=1e-4)

    def test_float16_keeps_small_gradients(self) -> None:
        """The probability of a rare token underflows float16 before the loss scale is applied."""
        x, weight, target = torch.randn(8, 16), torch.randn(20_000, 16), torch.arange(8)

        def gradients(enabled: bool) -> list[Tensor]:
            inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
            with torch.autocast("cpu", dtype=torch.float16, enabled=enabled):
                total, _ = linear_cross_entropy.linear_cross_entropy(*inputs, target)
            return [grad / 1024 for grad in torch.autograd.grad(1024 * total, inputs)]

        for found, expected in zip(gradients(True), gradients(False), strict=True):
            row_ratio = found.norm(dim=1) / expected.norm(dim=1)
            assert row_ratio.min() > 0.97
            assert row_ratio.max() < 1.03

    def test_bfloat16_gradients_scale_exactly(self) -> None:
        x, weight, target = torch.randn(16, 32).bfloat16(), torch.randn(50, 32), torch.randint(50, (16,))

        def gradient(scale: float) -> Tensor:
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                total, _ = linear_cross_entropy.linear_cross_entropy(leaf, weight, target)
            return torch.autograd.grad(total * scale, leaf)[0].float()

        whole, part = gradient(1.0), gradient(1 / 3001)
        ratio = (whole * part).sum() / (whole * whole).sum()
        assert ratio.item() * 3001 == pytest.approx(1, abs=5e-4)


def operations() -> dict[str, Any]:
    """Returns every module of `seqtk.ops` that has a naive form."""
    modules = [importlib.import_module(f"seqtk.ops.{found.name}") for found in pkgutil.iter_modules(seqtk.ops.__path__)]
    return {m.__name__: m for m in modules if getattr(getattr(m, "naive", None), "__module__", "") == m.__name__}


class TestResidual:
    """Tests of `add_residual`, which computes x + dropout(y) and a layer norm as one operation."""

    @pytest.mark.parametrize("has_norm", [True, False])
    def test_fast_and_naive_forms_agree_without_dropout(self, has_norm: bool) -> None:
        def add(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y = residual.add_residual(x, y, rate=0.0, weight=weight if has_norm else None, bias=bias)
            return y + 0 * (weight + bias)

        assert_forms_agree(add, (3, 5, 8), (3, 5, 8), (8,), (8,))

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("has_norm", [True, False])
    def test_dropout_equals_keep_mask_with_the_same_seed(self, has_norm: bool, bias: bool) -> None:
        x, y = (torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
        norm = nn.LayerNorm(8, bias=bias, dtype=torch.float64)
        nn.init.normal_(norm.weight)
        parameters = [parameter for parameter in norm.parameters() if has_norm]
        torch.manual_seed(1)
        mask = dropout.keep_mask(y, 0.3)
        expected = norm(x + y * mask) if has_norm else x + y * mask
        torch.manual_seed(1)
        weight = norm.weight if has_norm else None
        found = residual.add_residual(x, y, rate=0.3, weight=weight, bias=norm.bias, eps=norm.eps)
        factor = torch.randn_like(found)
        for a, b in zip(
            [found, *torch.autograd.grad((found * factor).sum(), [x, y, *parameters])],
            [expected, *torch.autograd.grad((expected * factor).sum(), [x, y, *parameters])],
            strict=True,
        ):
            assert_close(a, b, 1e-12)

    def test_bfloat16_is_added_to_a_float32_residual(self) -> None:
        x = torch.randn(64, 8, requires_grad=True)
        y = torch.randn(64, 8).bfloat16().requires_grad_()  # no value is 0
        z = residual.add_residual(x, y, rate=0.5, weight=None, bias=None)
        assert z.dtype == torch.float32
        z.sum().backward()
        assert y.grad is not None
        assert y.grad.dtype == torch.bfloat16
        kept = z.detach() != x.detach()
        assert torch.equal(y.grad != 0, kept)
        assert torch.allclose((z - x)[kept], 2 * y.float()[kept], atol=1e-5)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_norm_backward_inputs_have_one_dtype(self, autocast: bool) -> None:
        """On CUDA, layer norm raises an error if its inputs have two dtypes."""
        x, y = torch.randn(2, 3, 8).bfloat16(), torch.randn(2, 3, 8).bfloat16().requires_grad_()
        norm = nn.LayerNorm(8)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            z = residual.add_residual(x, y, rate=0.5, weight=norm.weight, bias=norm.bias)
        with _NormDtypes() as seen:
            z.float().square().sum().backward()
        assert len(seen.dtypes) == 1
        assert y.grad is not None


class _NormDtypes(TorchDispatchMode):
    """Records the dtypes of the inputs of layer norm's backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_layer_norm_backward.default:
            self.dtypes |= {each.dtype for each in args if isinstance(each, Tensor)}
        return func(*args, **(kwargs or {}))


class TestTensors:
    def test_once_for_recomputes_after_a_change_in_place(self) -> None:
        source = torch.zeros(3)
        for _ in range(2):
            assert once_for("test", source, source.clone) is once_for("test", source, source.clone)
            source += 1
            assert torch.equal(once_for("test", source, source.clone), source)
        with torch.inference_mode():
            source = torch.zeros(3)
            assert once_for("test", source, source.clone) is once_for("test", source, source.clone)


class TestRowLinear:
    """Linear maps in bfloat16 on a CPU, computed in pieces of rows."""

    @pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200, 512, 1024, 1301, 2049])
    @pytest.mark.parametrize("bias", [True, False])
    def test_fast_and_naive_forms_agree(self, rows: int, bias: bool) -> None:
        x, weight, b = (torch.randn(*size).bfloat16().requires_grad_() for size in ((rows, 24), (40, 24), (40,)))
        inputs = [x, weight, b] if bias else [x, weight]
        factor = torch.randn(rows, 40).bfloat16()
        found, expected = (form(*inputs) for form in (row_linear.row_linear, row_linear.naive))
        pairs = [(found, expected)]
        pairs += zip(*(torch.autograd.grad(y, inputs, factor) for y in (found, expected)), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=0, atol=2**-7 * float(b.detach().abs().amax() if b.numel() else 0))

    @pytest.mark.parametrize("rows", [63, 64, 65])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_inputs_are_converted_to_the_dtype_of_the_weight(self, rows: int, dtype: torch.dtype) -> None:
        x, weight = torch.randn(rows, 8, dtype=dtype), torch.randn(5, 8).bfloat16()
        assert row_linear.row_linear(x, weight).dtype == torch.bfloat16

    def test_transposed_batch_is_multiplied_as_one_matrix(self) -> None:
        x, weight = torch.randn(16, 8, 8).bfloat16().transpose(0, 1), torch.randn(5, 8).bfloat16()
        with torch.no_grad(), torch.profiler.profile(acc_events=True) as profile:
            row_linear.row_linear(x, weight)
        names = {event.name for event in profile.events()}
        assert "aten::mm" in names
        assert "aten::bmm" not in names

    def test_many_lengths_give_few_matrix_shapes(self) -> None:
        """oneDNN caches code for each matrix shape, so that many shapes increase the memory of a run."""
        weight = torch.randn(8, 8).bfloat16()
        with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
            for rows in range(1024, 2048, 7):
                x = torch.ones(rows, 8).bfloat16()
                row_linear.row_product(x, weight)
                row_linear.row_outer(x, x)
        sizes = {str(event.input_shapes) for event in profile.events() if event.name in ("aten::mm", "aten::addmm_")}
        assert 0 < len(sizes) <= 40


class TestNaiveForms:
    @pytest.mark.parametrize("name", operations())
    def test_naive_form_has_at_most_30_lines(self, name: str) -> None:
        assert len(inspect.getsource(operations()[name].naive).splitlines()) <= 30

    def test_every_operation_has_a_test_in_this_file(self) -> None:
        tested = {name for name, value in globals().items() if inspect.ismodule(value)}
        assert {name.rpartition(".")[2] for name in operations()} <= tested
