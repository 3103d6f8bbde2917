"""Tests of the translation task."""

import shutil
from pathlib import Path

import pytest

from seqtk.models.transformer import TransformerConfig
from seqtk.tasks import tasks
from seqtk.tasks.translation import TranslationConfig
from seqtk.utils.errors import UserError


class TestSharedEmbeddings:
    @pytest.fixture
    def other_target(self, tiny_corpus: Path, tmp_path: Path) -> TranslationConfig:
        """Data whose dictionaries have equal sizes, but different tokens."""
        data = shutil.copytree(tiny_corpus, tmp_path / "data")
        lines = (data / "dict.de.txt").read_text().splitlines(keepends=True)
        (data / "dict.de.txt").write_text("".join(reversed(lines)))
        return TranslationConfig(data=str(data))

    def test_different_dictionaries_cannot_share_a_table(self, other_target: TranslationConfig) -> None:
        task = tasks.build(other_target)
        with pytest.raises(UserError, match=r"share_embeddings=all(.|\n)*'en' and 'de'(.|\n)*joint=true"):
            task.model(TransformerConfig(dim=8, heads=2))
        task.model(TransformerConfig(dim=8, heads=2, share_embeddings="decoder"))

    def test_older_models_that_share_it_still_load(self, other_target: TranslationConfig) -> None:
        task = tasks.build(other_target, assets=tasks.build(other_target).assets())
        model = task.model(TransformerConfig(dim=8, heads=2))
        assert model.source_embedding.tokens is model.target_embedding.tokens
