"""Rules of drawing let loose on trainings as ``train`` would: every reading at once, the hold at work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from tpsprune import stopping
from tpsprune.recipe.stop import (
    ChangeRule,
    ConsensusRule,
    MaskRule,
    PlateauRule,
    ReopenRule,
    Rule,
    Stop,
    ThresholdRule,
)
from tpsprune.records import Reading
from tpsprune.studies.finding import Table
from tpsprune.studies.watched import Watched

__all__ = ["DRAWS", "Draw", "draw", "draw_table"]

_FALL: Final = {name: ChangeRule(signal=name, factor=1.1) for name in ("d_eff", "validation_loss")}
DRAWS: Final[Mapping[str, Rule]] = {
    "default": Stop().draw,
    "wider plateau": PlateauRule(tolerance=0.1),
    "longer plateau": PlateauRule(patience=5),
    "plateau of the loss": PlateauRule(signal="validation_loss", tolerance=0.1),
    "fall of d_eff": _FALL["d_eff"],
    "fall of the loss": _FALL["validation_loss"],
    "fall of the loss, no hold": ChangeRule(signal="validation_loss", factor=1.1, learned_share=0.0),
    "Early-Bird": MaskRule(),
    "Early-Bird, no hold": MaskRule(learned_share=0.0),
    "loops": ThresholdRule(signal="h1", level=3.0, learned_share=0.5),
    "edge": ReopenRule(),
    "accuracy": ThresholdRule(signal="validation_accuracy", level=0.9),
    "both falls": ConsensusRule(rules=tuple(_FALL.values())),
}
"""What a recipe might say under ``[stop.draw]``: the default first, settled before any was tried."""


@dataclass(frozen=True, slots=True)
class Draw:
    """When a rule drew, and the validation accuracy then."""

    step: int
    accuracy: float


def draw(rule: Rule, watched: Watched, chance_accuracy: float) -> Draw | None:
    """Return where a rule first acts, of all that a training showed, or ``None``."""
    values = {name: dict(series) for name, series in watched.series.items()}
    memory = stopping.start(rule, chance_accuracy=chance_accuracy)
    for step in sorted({step for each in values.values() for step in each}):
        readings = [
            Reading(signal=name, step=step, epoch=step / watched.steps_per_epoch, value=each[step])
            for name, each in values.items()
            if step in each
        ]
        memory, verdict = stopping.step(rule, memory, readings)
        if verdict.act:
            return Draw(step, values["validation_accuracy"].get(step) or 0.0)
    return None


def draw_table(
    learned: Sequence[Watched],
    controls: Sequence[Watched],
    ordinary: Sequence[Watched],
    chances: Mapping[str, float],
) -> Table:
    """Return of each rule how often, how early and at what accuracy it drew; ``chances`` by task."""
    rows = []
    for name, rule in DRAWS.items():
        hits, false, usual = (
            [found for each in group if (found := draw(rule, each, chances[each.trial.arm]))]
            for group in (learned, controls, ordinary)
        )
        epochs = [
            each.reached_step - found.step
            for each in learned
            if (found := draw(rule, each, chances[each.trial.arm])) and each.reached_step is not None
        ]
        rows.append(
            (
                name,
                stopping.describe(rule),
                f"{len(hits)} of {len(learned)}",
                f"{fmean(epochs):.0f}" if epochs else "",
                f"{fmean(each.accuracy for each in hits):.2f}" if hits else "",
                f"{len(false)} of {len(controls)}",
                f"{len(usual)} of {len(ordinary)}",
                f"{fmean(each.accuracy for each in usual):.3f}" if usual else "",
            )
        )
    return Table(
        title="Rules of drawing, as a run would follow them",
        columns=(
            "rule",
            "in words",
            "drew before the level",
            "steps before it",
            "accuracy then",
            "drew in vain",
            "drew on digits",
            "accuracy then",
        ),
        rows=tuple(rows),
    )
