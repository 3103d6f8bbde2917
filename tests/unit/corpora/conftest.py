"""The web server that the tests of corpora share."""

from collections.abc import Iterator

import pytest

from tests.unit.corpora.fake_server import Shelf, serving


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with serving() as shelf:
        yield shelf
