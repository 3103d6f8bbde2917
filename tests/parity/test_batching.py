"""Batches equal the batches that fairseq made from the same lengths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtk.data.plan import BatchingConfig, pack


@pytest.fixture(scope="module")
def table(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "tables.json").read_text())["batch_by_size"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("order", ["sorted", "natural"])
def test_batches_equal_fairseq(table: dict[str, Any], order: str) -> None:
    """The batches are equal, except that only seqtk has a last batch of examples that do not fill a multiple."""
    sizes = np.array(table["sizes"])
    indices = np.array(table["sorted_order"]) if order == "sorted" else np.arange(len(sizes))
    dropped_by_fairseq = 0
    for case in table[f"over_{order}_order"]:
        arguments = case["arguments"]
        multiple = arguments["required_batch_size_multiple"]
        config = BatchingConfig(arguments["max_tokens"], None, arguments["max_sentences"], multiple)
        batches = pack(indices, sizes, config)
        assert [batch.tolist() for batch in batches[: len(case["batches"])]] == case["batches"], arguments
        rest = batches[len(case["batches"]) :]
        assert len(rest) <= 1
        assert all(len(batch) % multiple for batch in rest)
        dropped_by_fairseq += len(rest)
        assert sorted(np.concatenate(batches)) == list(range(len(sizes)))
    assert dropped_by_fairseq > 0


def test_size_of_a_pair_is_the_larger_of_its_lengths(table: dict[str, Any]) -> None:
    assert np.maximum(table["source_lengths"], table["target_lengths"]).tolist() == table["sizes"]
