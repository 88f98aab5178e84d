"""English at hand everywhere: Python's own help texts, cut into windows whose next character is the answer.

Shapes: n windows, l characters of a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from pydoc_data.topics import topics
from typing import Any

import numpy as np

__all__ = ["windows"]


def windows(length: int = 8, items: int = 20_000, seed: int = 0) -> Mapping[str, Any]:
    """Return windows of ``length`` characters and the one that follows each, as custom data.

    The text is parted before it is cut, so that no window held out overlaps one trained on: the first eight
    tenths of it are trained on (``items`` windows drawn by ``seed``), the ninth validates, the last tests.
    """
    text = "".join(topics.values())
    letters = sorted(set(text))
    ids = np.searchsorted(np.array(letters), np.array(list(text)))
    tenth = len(ids) // 10
    generator = np.random.default_rng(seed)
    parts = {
        "train": ids[: 8 * tenth],
        "validation": ids[8 * tenth : 9 * tenth],
        "test": ids[9 * tenth :],
    }
    cut = {name: np.lib.stride_tricks.sliding_window_view(part, length + 1) for name, part in parts.items()}
    drawn = {
        name: each[generator.permutation(len(each))[: items if name == "train" else items // 10]]
        for name, each in cut.items()
    }
    return {
        **{name: (each[:, :-1].copy(), each[:, -1].copy()) for name, each in drawn.items()},
        "classes": len(letters),
        "vocabulary": len(letters),
        "input_kind": "tokens",
    }
