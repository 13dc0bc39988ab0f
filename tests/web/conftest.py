"""A site to ask, just made or busy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from world import World, fill


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An installation that has just been made."""
    made = World(folder=tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def busy(world: World) -> World:
    """One with studies in every state: done, deferred, failed, held, processed, discarded, receiving."""
    fill(world)
    return world


@pytest.fixture(scope="session")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The same, made once, for tests that only look."""
    made = World(folder=tmp_path_factory.mktemp("still"))
    fill(made)
    yield made
    made.ledger.close()
