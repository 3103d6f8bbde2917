"""Fixtures of all tests. The tests use one thread, because two threads are slower on small tensors."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from seqtk.corpora.demo.corpus import write_corpus
from seqtk.data.preprocess import PreprocessConfig, preprocess

torch.set_num_threads(1)
# On a busy machine, an example may take any time.
hypothesis.settings.register_profile("seqtk", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("seqtk")

SHARED = Path(os.environ.get("SEQTK_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the layer tests: cpu or cuda")


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-bin of the demo corpus with 300 training, 100 validation and 100 test pairs. The text is in `text`."""
    folder = tmp_path_factory.mktemp("corpus") / "tiny"
    text = folder / "text"
    write_corpus(text, train=300, valid=100, test=100)
    preprocess(
        PreprocessConfig(
            source_lang="en",
            target_lang="de",
            train=str(text / "train"),
            valid=(str(text / "valid"),),
            test=(str(text / "test"),),
            destdir=str(folder),
            vocab_size=300,
            character_coverage=1.0,
            workers=1,
        )
    )
    return folder


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of results computed with fairseq. The test is skipped if the folder is missing."""
    path = SHARED / "golden"
    if not path.is_dir():
        pytest.skip(f"no golden files at {path} (set SEQTK_SHARED)")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real corpora. The test is skipped if the folder is missing."""
    path = Path(os.environ.get("SEQTK_SHARED_DATA", SHARED / "data"))
    if not path.is_dir():
        pytest.skip(f"no real corpora at {path} (set SEQTK_SHARED_DATA)")
    return path
