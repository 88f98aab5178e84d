"""The doctests of an adapter need its library: without that, its file is left alone."""

from __future__ import annotations

from importlib.util import find_spec

_LIBRARIES = {"lightning": "pytorch_lightning", "huggingface": "transformers"}

collect_ignore = [
    f"tpsprune/adapters/{name}.py" for name, library in _LIBRARIES.items() if find_spec(library) is None
]
