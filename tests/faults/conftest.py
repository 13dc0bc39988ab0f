"""What fault tests share: small studies, and far ends that keep books."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import Pool

from sink import Sink, sink


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Small studies."""
    return Pool(tmp_path_factory.mktemp("pool"))


@pytest.fixture
def far_end(tmp_path: Path) -> Iterator[Sink]:
    """A DICOM node that takes everything and writes it down."""
    with sink(tmp_path) as running:
        yield running
