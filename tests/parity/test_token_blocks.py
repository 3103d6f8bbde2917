"""Token blocks equal the blocks of fairseq in every break mode."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtk.data.blocks import TokenBlocks, block_bounds
from seqtk.data.indexed import IndexedDataset
from seqtk.data.indexed_writer import IndexedWriter


@pytest.fixture(scope="module")
def stored(golden: Path) -> Any:
    return json.loads((golden / "tables.json").read_text())["token_blocks"]


@pytest.fixture(scope="module")
def items(stored: Any, tmp_path_factory: pytest.TempPathFactory) -> IndexedDataset:
    """Returns sentences of the stored lengths, with consecutive token ids from 100."""
    prefix = tmp_path_factory.mktemp("blocks") / "train"
    sizes = np.array(stored["sizes"])
    with IndexedWriter(prefix, vocabulary_size=1000) as writer:
        writer.extend_arrays(np.arange(100, 100 + sizes.sum()), sizes)
    return IndexedDataset(prefix)


def test_token_blocks_equal_fairseq(stored: Any, items: IndexedDataset) -> None:
    assert len(stored["tables"]) == 8
    for table in stored["tables"]:
        settings = {"break_mode": table["break_mode"], "tokens_per_sample": table["block_size"]}
        bounds_K2 = block_bounds(items.sizes, **settings)
        assert bounds_K2.tolist() == table["slice_indices"], settings
        blocks = TokenBlocks(items, **settings)
        assert blocks.sizes_ND[:, 0].tolist() == np.diff(bounds_K2)[:, 0].tolist()
        for number, wanted in enumerate(table["first_three_blocks"]):
            index, ids = blocks[number]
            assert index == number
            assert ids[:-1].tolist() == wanted["source"], settings
            assert ids[1:].tolist() == wanted["target"], settings
