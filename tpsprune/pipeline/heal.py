"""The repair after a cut, without labels: charged to the phase ``heal``, its progress shown."""

from __future__ import annotations

import time
from collections.abc import Generator

from torch import nn

from tpsprune import pruning
from tpsprune.pipeline.bench import Bench
from tpsprune.pipeline.bill import Bill
from tpsprune.records import Event, PhaseEnded, PhaseStarted, Progress

__all__ = ["healed"]

PROGRESS_SECONDS = 0.1


def healed(bench: Bench, bill: Bill, ticket: nn.Module, dense: nn.Module) -> Generator[Event, None, None]:
    """Heal ``ticket`` in place on the probe data, for as many steps as the recipe says."""
    settings = bench.recipe.prune
    total = settings.heal_steps
    yield PhaseStarted(phase="heal", title="heal", total_steps=total)
    shown_at = time.monotonic()
    steps = pruning.repair(
        ticket,
        dense,
        bench.cut_probe,
        steps=total,
        learning_rate=settings.heal_learning_rate,
        seed=bench.recipe.seed,
    )
    for done, _ in enumerate(steps, start=1):
        bill.split_if_long()
        if time.monotonic() - shown_at > PROGRESS_SECONDS:
            shown_at = time.monotonic()
            yield Progress(phase="heal", step=min(done, total), total_steps=total, epoch=0.0)
    yield PhaseEnded(phase="heal")
