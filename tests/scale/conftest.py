"""One pair of processes for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scale.duo import Duo


@pytest.fixture(scope="session")
def duo() -> Iterator[Duo]:
    """Two processes as torchrun starts them; tests that use them are marked ``xdist_group("duo")``."""
    pair = Duo()
    try:
        yield pair
    finally:
        pair.close()
