"""The energy of an answer: what a target of joules is measured by."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from tpsprune import measure
from tpsprune.errors import PruneError
from tpsprune.loop.meter import Ledger, Meter

ANSWER_SECONDS: Final = 1.0
"""How long a model answers to be metered: a thousand times what a processor's counter resolves."""


def joules_of_answer(batch_n: Any, meter: Meter | Ledger, model: nn.Module) -> float:
    """Return the joules of an answer of ``model`` on a batch, over a second of passes, charged where metered.

    Raises:
        PruneError: nothing is metered.
    """
    measure.infer_for(ANSWER_SECONDS / 4, model, batch_n)
    with meter.window("prune") as span:
        items = measure.infer_for(ANSWER_SECONDS, model, batch_n)
    joules = span.window.total_joules
    if joules is None:
        raise PruneError("a target of joules needs a meter that meters; energy.meter is 'none'")
    return joules / items
