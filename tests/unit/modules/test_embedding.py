"""Embeddings: initialization, scale and positions."""

import math

import pytest
import torch

from seqtk.data.vocabulary import PAD
from seqtk.modules.embedding import Embedding, SinusoidalPositions, sinusoids, token_embedding
from seqtk.utils.errors import UserError

D = 16


def embedding(**options: object) -> Embedding:
    settings = {"positions": "none", "max_length": 9, "dropout": 0.0, **options}
    return Embedding(token_embedding(20, D), **settings)  # type: ignore[arg-type]


def test_embedding_std_is_the_inverse_root_of_the_width() -> None:
    weight = token_embedding(4000, 64).weight
    assert weight[PAD].abs().max() == 0
    assert weight.std().item() == pytest.approx(64**-0.5, rel=0.02)


def test_output_is_scaled_token_plus_position() -> None:
    layer = embedding(positions="sinusoidal")
    tokens_BT = torch.tensor([[4, 5, 6], [7, 8, PAD]])
    wanted = math.sqrt(D) * layer.tokens.weight[tokens_BT] + sinusoids(3, D)
    torch.testing.assert_close(layer(tokens_BT, torch.arange(3)[None]), wanted)


def test_scale_norm_and_positions_are_optional() -> None:
    tokens_BT = torch.tensor([[4, 5]])
    plain = embedding(scale=False)
    assert torch.equal(plain(tokens_BT, torch.arange(2)[None]), plain.tokens.weight[tokens_BT])
    normed = embedding(norm=True)(tokens_BT, torch.arange(2)[None])
    torch.testing.assert_close(normed.mean(-1), torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_sinusoids_equal_the_formula() -> None:
    table_TD = sinusoids(50, D)
    for position in (0, 1, 49):
        for index in range(D // 2):
            angle = (position + 2) / 10000 ** (index / (D // 2 - 1))
            assert table_TD[position, index].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table_TD[position, D // 2 + index].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert sinusoids(5, 7)[:, -1].abs().max() == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_sinusoid_table_grows_with_the_input(at_once: bool) -> None:
    layer, length = SinusoidalPositions(D), 300
    if at_once:
        rows = layer(torch.arange(length)[None])[0]
    else:
        rows = torch.cat([layer(torch.tensor([[position], [0]]))[0] for position in range(length)])
    assert torch.equal(rows, sinusoids(length, D))
    assert not layer.state_dict()


def test_input_beyond_learned_positions_is_refused() -> None:
    layer = embedding(positions="learned")
    assert layer(torch.full((1, 9), 4), torch.arange(9)[None]).shape == (1, 9, D)
    with pytest.raises(UserError, match="10 tokens exceeds the number of learned positions, 9"):
        layer(torch.full((1, 10), 4), torch.arange(10)[None])
