"""ListOps: values recomputed by a stack machine, distributions, limits, seeds, workers and official files."""

from fractions import Fraction

import numpy as np
import pytest

from seqtk.corpora.lra.listops import TOKENS, Expressions, ListOpsShape, draw, generate, read_official, root_lookup
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter

SMALL = ListOpsShape(max_depth=4, max_args=4, min_length=8, max_length=40)


def draw_expressions(shape: ListOpsShape, total: int, *, seed: int = 1, workers: int = 1) -> Expressions:
    return generate(shape, total, seed=seed, workers=workers, reporter=Reporter())


def words(expressions: Expressions) -> list[list[str]]:
    return [[TOKENS[code] for code in codes] for codes in expressions.codes]


def run_stack_machine(tokens: list[str]) -> tuple[int, int, int]:
    """Returns the value, the nesting depth and the largest number of arguments of an expression, from its tokens."""
    frames: list[tuple[str, list[int]]] = [("", [])]
    nested = most = 0
    for token in tokens:
        if token.startswith("["):
            frames.append((token[1:], []))
            nested = max(nested, len(frames) - 1)
            continue
        if token == "]":
            name, arguments = frames.pop()
            most = max(most, len(arguments))
            assert len(arguments) >= 2
            ordered, half = sorted(arguments), len(arguments) // 2
            median = Fraction(ordered[half] + ordered[-1 - half], 2)
            results = {"MIN": ordered[0], "MAX": ordered[-1], "MED": int(median), "SM": sum(arguments) % 10}
            frames[-1][1].append(results[name])
        else:
            frames[-1][1].append(int(token))
    ((_, results_left),) = frames
    (value,) = results_left
    return value, nested, most


def length_shares(shape: ListOpsShape) -> np.ndarray:
    """Returns the exact probability of each length below max_length, computed with generating functions."""
    share = np.zeros(shape.max_length)
    share[1] = 1.0
    for _ in range(shape.max_depth - 1):
        arguments, power = np.zeros_like(share), share
        for _ in range(2, shape.max_args + 1):
            power = np.convolve(power, share)[: shape.max_length]
            arguments += power / (shape.max_args - 1)
        share = np.zeros_like(share)
        share[1] = 0.75
        share[2:] += 0.25 * arguments[:-2]
    return share


class TestTrees:
    @pytest.mark.parametrize("shape", [ListOpsShape(), SMALL, ListOpsShape(max_depth=3, max_args=2, min_length=1)])
    def test_values_equal_the_results_of_a_stack_machine(self, shape: ListOpsShape) -> None:
        expressions = draw_expressions(shape, 60)
        for tokens, value in zip(words(expressions), expressions.values_K, strict=True):
            result, nested, most = run_stack_machine(tokens)
            assert result == value
            assert nested <= shape.max_depth - 1
            assert most <= shape.max_args
            assert shape.min_length < len(tokens) < shape.max_length

    def test_length_frequencies_match_their_probabilities(self) -> None:
        shape = ListOpsShape(max_depth=5, max_args=5, min_length=0, max_length=60)
        sizes = np.concatenate([[len(codes) for codes in draw(shape, 7, block).codes] for block in range(10)])
        share = length_shares(shape)
        assert abs(len(sizes) / 40_960 - share.sum()) < 0.01
        expected = share / share.sum()
        counted = np.bincount(sizes, minlength=60) / len(sizes)
        assert np.abs(counted - expected).max() < 5 * np.sqrt(0.25 / len(sizes))
        assert abs(sizes.mean() - (expected * np.arange(60)).sum()) < 5 * sizes.std() / np.sqrt(len(sizes))

    def test_operators_digits_and_arguments_are_uniform(self) -> None:
        shape = ListOpsShape(max_depth=2, min_length=1)
        trees = [tokens for block in range(8) for tokens in words(draw(shape, 3, block))]
        for values in (
            [tokens[0] for tokens in trees],
            [len(tokens) for tokens in trees],
            [token for tokens in trees for token in tokens[1:-1]],
        ):
            _, counts = np.unique(values, return_counts=True)
            assert len(counts) in (4, 9, 10)
            expected = counts.sum() / len(counts)
            assert ((counts - expected) ** 2 / expected).sum() < 35  # chi-squared of 9 degrees, p < 1e-4

    def test_no_expression_occurs_twice(self) -> None:
        expressions = draw_expressions(ListOpsShape(max_depth=2, max_args=2, min_length=2, max_length=6), 390)
        assert len(set(map(tuple, words(expressions)))) == 390


class TestSeeds:
    def test_workers_do_not_change_the_expressions(self) -> None:
        one, two = draw_expressions(SMALL, 500, workers=1), draw_expressions(SMALL, 500, workers=2)
        assert words(one) == words(two)
        assert (one.values_K == two.values_K).all()

    def test_expressions_are_the_same_in_every_version(self) -> None:
        tokens = words(draw_expressions(ListOpsShape(max_depth=3, max_args=3, min_length=4, max_length=12), 3, seed=0))
        assert [" ".join(line) for line in tokens] == GOLDEN

    def test_two_seeds_give_different_expressions(self) -> None:
        one, two = (set(map(tuple, words(draw_expressions(ListOpsShape(), 30, seed=seed)))) for seed in (1, 2))
        assert not one & two


GOLDEN = ["[SM [SM 7 8 9 ] [MED 4 0 ] ]", "[SM 4 4 3 ]", "[MED [SM 9 9 4 ] 1 7 ]"]


def test_class_shares_equal_the_original_data() -> None:
    """The shares, and the accuracy of predicting from the root operator, are compared with 6,000 original trees."""
    expressions = draw_expressions(ListOpsShape(), 4000, seed=5)
    shares = np.bincount(expressions.values_K, minlength=10) / 4000
    published = [0.170, 0.091, 0.073, 0.078, 0.089, 0.090, 0.082, 0.076, 0.077, 0.174]
    assert np.abs(shares - published).max() < 0.025
    assert 0.33 < root_lookup(expressions.take(range(2000)), expressions.take(range(2000, 4000))) < 0.39


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"min_length": 50, "max_length": 51}, "min_length=50 and less than max_length=51"),
        ({"max_depth": 3, "max_args": 2}, "min_length=500"),
        (
            {"max_depth": 2, "max_args": 2, "min_length": 1, "max_length": 5},
            "Found only 400 of 401 different expressions",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], key: str) -> None:
    with pytest.raises(UserError) as caught:
        draw_expressions(ListOpsShape(**settings), 401)
    assert key in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


class TestOfficialFiles:
    def test_parentheses_are_dropped(self) -> None:
        lines = ["Source\tTarget", "( ( ( [MAX 2 ) 9 ) ] )\t9"]
        assert list(read_official(lines, "x")) == [(["[MAX", "2", "9", "]"], "9")]

    @pytest.mark.parametrize("line", ["", "[MAX 2 9 ]", "[MAX 2 9 ]\t10", "[AVG 2 9 ]\t5", "\t5"])
    def test_malformed_lines_are_refused(self, line: str) -> None:
        with pytest.raises(UserError, match="Line 2 of x"):
            list(read_official(["Source\tTarget", line], "x"))
