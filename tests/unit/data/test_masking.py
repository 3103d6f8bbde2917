"""Masking: rates, dependence on seed, epoch and example only, and whole words."""

import numpy as np
import pytest

from seqtk.data.blocks import TokenBlocks
from seqtk.data.masking import EVALUATION, MASK, MaskedBlocks, Masking, MaskingConfig
from seqtk.data.sources.text import MemoryItems
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from seqtk.utils.errors import UserError

WORDS = Vocabulary([f"w{number}" for number in range(96)]).padded(8)


def masking(vocabulary: Vocabulary = WORDS, separator: str | None = None, **settings: object) -> Masking:
    return Masking(MaskingConfig(**settings), vocabulary=vocabulary, tokenizer=Tokenizer.plain(separator))  # type: ignore[arg-type]


def lines(count: int, length: int = 200) -> np.ndarray:
    ids = np.random.default_rng(1).integers(UNK + 1, len(WORDS), size=(count, length))
    ids[:, -1] = EOS
    return ids


class TestRates:
    def test_default_mask_rates_equal_bert(self) -> None:
        ids = lines(500)
        pairs = [masking()(row, epoch=1, example=index) for index, row in enumerate(ids)]
        source, target = (np.stack(part) for part in zip(*pairs, strict=True))
        predicted = target != PAD
        real = ids != EOS
        assert predicted.sum() / real.sum() == pytest.approx(0.15, abs=0.001)
        hidden, kept = predicted & (source == MASK), predicted & (source == ids)
        replaced = predicted & ~hidden & ~kept
        for part, share in ((hidden, 0.8), (replaced, 0.1), (kept, 0.1)):
            assert part.sum() / predicted.sum() == pytest.approx(share, abs=0.015)
        assert (target[predicted] == ids[predicted]).all()
        assert (source[~predicted] == ids[~predicted]).all()
        assert predicted.mean(0)[:-1] == pytest.approx(0.15, abs=0.07)  # positions in a row are equally likely

    def test_special_symbols_are_not_predicted(self) -> None:
        ids = np.array([BOS, 7, EOS, 8, EOS])
        _, target = masking(rate=1.0)(ids, epoch=1, example=0)
        assert target.tolist() == [PAD, 7, PAD, 8, PAD]

    def test_random_tokens_are_never_filler_words(self) -> None:
        drawn = masking(Vocabulary(["a", "b"]).padded(8), rate=1.0, masked=0.0, random=1.0)
        source, _ = drawn(np.full(300, 4), epoch=1, example=0)
        assert set(source.tolist()) == {UNK, 4, 5}

    @pytest.mark.parametrize("ids", [[7], [EOS], [EOS, EOS], [7, EOS]])
    def test_at_least_one_token_is_predicted(self, ids: list[int]) -> None:
        _, target = masking(rate=1e-9)(np.array(ids), epoch=1, example=0)
        assert (target != PAD).sum() == 1

    def test_masked_plus_random_above_1_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"task\.masking\.masked=0\.8 and task\.masking\.random=0\.3"):
            masking(random=0.3)


class TestDeterminism:
    def test_mask_depends_on_seed_epoch_and_example(self) -> None:
        row = lines(1)[0]

        def sources(seed: int, epoch: int, example: int) -> tuple[int, ...]:
            return tuple(masking(seed=seed)(row, epoch=epoch, example=example)[0].tolist())

        keys = [(seed, epoch, example) for seed in (1, 2) for epoch in (1, 2) for example in (0, 1)]
        assert len({sources(*key) for key in keys}) == len(keys)
        assert all(sources(*key) == sources(*key) for key in keys)

    def test_evaluation_masks_do_not_depend_on_the_seed(self) -> None:
        row = lines(1)[0]
        first, second = (masking(seed=seed)(row, epoch=EVALUATION, example=3) for seed in (1, 2))
        assert all((a == b).all() for a, b in zip(first, second, strict=True))

    def test_masks_are_the_same_in_every_version(self) -> None:
        _, target = masking()(np.arange(10, 30), epoch=1, example=0)
        assert target[target != PAD].tolist() == [14, 23, 24]


class TestWholeWords:
    def predicted(self, tokens: list[str], separator: str) -> set[tuple[str, ...]]:
        """Returns the groups of tokens that are predicted together. At this small rate, each epoch masks one word."""
        vocabulary = Vocabulary(sorted(set(tokens)))
        mask = masking(vocabulary, separator, rate=0.01, whole_words=True)
        ids = vocabulary.encode(tokens)
        targets = [mask(ids, epoch=epoch, example=0)[1] for epoch in range(1, 200)]
        return {tuple(vocabulary.decode(target[target != PAD])) for target in targets}

    def test_sentencepiece_words_are_masked_whole(self) -> None:
        tokens = ["\u2581the", "\u2581ca", "t", "\u2581sat", "."]
        assert self.predicted(tokens, "sentencepiece") == {("\u2581the",), ("\u2581ca", "t"), ("\u2581sat", ".")}

    def test_words_with_continuation_markers_are_masked_whole(self) -> None:
        tokens = ["the", "c@@", "a@@", "t", "sat"]
        assert self.predicted(tokens, "@@ ") == {("the",), ("c@@", "a@@", "t"), ("sat",)}

    def test_words_in_character_text_are_masked_whole(self) -> None:
        found = self.predicted(["a", "b", "<U+0020>", "c"], "characters")
        assert found == {("a", "b"), ("<U+0020>", "c")}

    def test_whole_words_do_not_cross_line_ends(self) -> None:
        vocabulary = Vocabulary(["a@@"])
        mask = masking(vocabulary, "@@ ", rate=0.01, whole_words=True)
        targets = [mask(np.array([4, EOS, 4, EOS]), epoch=epoch, example=0)[1].tolist() for epoch in range(1, 50)]
        assert {tuple(target) for target in targets} == {(4, PAD, PAD, PAD), (PAD, PAD, 4, PAD)}

    def test_whole_words_with_letter_markers_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"task\.masking\.whole_words"):
            masking(separator="letter", whole_words=True)


def test_masked_blocks_have_each_token_once() -> None:
    items = MemoryItems(lines(7, 30))
    blocks = MaskedBlocks(TokenBlocks(items, tokens_per_sample=16), masking(), epoch=2)
    rows = [blocks[index] for index in range(len(blocks))]
    assert [index for index, *_ in rows] == list(range(len(blocks)))
    joined = np.concatenate([np.where(target == PAD, source, target) for _, source, target in rows])
    assert joined.tolist() == items.stream(0, items.total).tolist()
