"""A home for a story, of which nothing runs on after it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Serving


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """A home that is set up; nothing runs yet."""
    found = Serving(tmp_path)
    found.run("init")
    yield found
    found.abandon()
