"""Processes for the tests of this room, started once."""

from collections.abc import Iterator

import pytest
from team import Team


@pytest.fixture(scope="session")
def pair() -> Iterator[Team]:
    """Two ranks."""
    team = Team(2)
    yield team
    team.stop()


@pytest.fixture(scope="session")
def four() -> Iterator[Team]:
    """Four ranks."""
    team = Team(4)
    yield team
    team.stop()


@pytest.fixture(scope="session")
def eight() -> Iterator[Team]:
    """Eight ranks: for few cases, they take their time to start."""
    team = Team(8)
    yield team
    team.stop()
