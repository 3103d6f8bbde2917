"""Fixtures of the end-to-end tests."""

import random

import pytest


@pytest.fixture
def seed() -> int:
    """A new seed for each run. A failing test prints it."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    return seed
