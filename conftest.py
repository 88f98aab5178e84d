"""The doctests of some files need an optional library: without that, the file is left alone."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

_LIBRARIES = {
    "adapters/lightning": "pytorch_lightning",
    "adapters/huggingface": "transformers",
    "jobs/cluster": "distributed",
}

collect_ignore = [f"tpsprune/{name}.py" for name, library in _LIBRARIES.items() if find_spec(library) is None]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one worker, for their fixtures, unless they name a group of their own."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
