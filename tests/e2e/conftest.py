"""Fixtures of the end-to-end tests."""

import random

import pytest


@pytest.fixture
def seed() -> int:
    """Returns a new seed for each test run. A failing test prints the seed."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    return seed
