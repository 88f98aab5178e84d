"""The small networks and their batches as one fixture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.pruning import nets_structure


@pytest.fixture(scope="session")
def zoo() -> SimpleNamespace:
    """Every class and batch of ``nets_structure``; ``case`` gives a model, and a batch for it, by name."""
    return SimpleNamespace(**vars(nets_structure))
