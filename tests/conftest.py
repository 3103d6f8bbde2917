"""Fixtures of all tests. They run on one thread: small tensors are slower on two."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from seqtk.corpora import demo

torch.set_num_threads(1)
# A busy machine is slow: no example is too slow.
hypothesis.settings.register_profile("seqtk", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("seqtk")

SHARED = Path(os.environ.get("SEQTK_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the layer tests run: cpu or cuda")


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-bin folder of 300 pairs of the demo corpus, with its text in `text`."""
    config = demo.DemoConfig(destdir=str(tmp_path_factory.mktemp("corpus") / "tiny"), pairs=300, vocab_size=300)
    demo.prepare(config)
    return Path(config.destdir)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of what real fairseq computed. The test is skipped if it is missing."""
    path = SHARED / "golden"
    if not path.is_dir():
        pytest.skip(f"no golden files at {path} (set SEQTK_SHARED)")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real corpora. The test is skipped if it is missing."""
    path = Path(os.environ.get("SEQTK_SHARED_DATA", SHARED / "data"))
    if not path.is_dir():
        pytest.skip(f"no real corpora at {path} (set SEQTK_SHARED_DATA)")
    return path
