"""Rules run over recorded trainings: alarms before generalisation, and rules that draw a ticket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Final, Literal, TypeAlias

from tpsprune import stopping
from tpsprune.recipe import stop
from tpsprune.records import Reading

Series: TypeAlias = tuple[tuple[int, float | None], ...]
"""Steps at which a signal was read, and its values; none where it had no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTrial:
    """A training to be watched: the task by its name in the study, and the seed of all that is random."""

    arm: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTraining:
    """A training that was watched: signals of the whole model, and what each cost.

    ``reached_step`` is that of the first reading at the level, none where the cap came first. ``cpu_seconds``
    are the training's own; ``signal_cpu_seconds`` come on top, by signal as a recipe names it.
    """

    trial: WatchedTrial
    steps: int
    steps_per_epoch: int
    reached_step: int | None
    series: Mapping[str, Series]
    cpu_seconds: float
    signal_cpu_seconds: Mapping[str, float]
    seconds: float = 0.0


FACTORS: Final = (1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
PATIENCES: Final = (1, 3)
CHANGING: Final[Mapping[str, tuple[Literal["min", "max"], ...]]] = {
    **dict.fromkeys(("d_eff", "h1_max", "h1_total", "h1_sum_of_squares", "spectral_edge"), ("min", "max")),
    **dict.fromkeys(("gap_23", "norm", "condensation", "collapse", "logit_rank"), ("min", "max")),
    **dict.fromkeys(("commutator_defect", "tps_coherence"), ("min", "max")),
    "validation_loss": ("min",),
    "validation_accuracy": ("max",),
}
"""Signals, and the ways each may change before a net generalises; the pilot picks one of them."""


def _candidates() -> Iterator[stop.Rule]:
    for signal, modes in CHANGING.items():
        for mode, factor, patience in product(modes, FACTORS, PATIENCES):
            yield stop.ChangeRule(
                monitor=signal, mode=mode, factor=factor, patience=patience, min_adjusted_accuracy=0.0
            )
    for level, patience in product((2.0, 3.0, 5.0, 10.0), PATIENCES):
        yield stop.ThresholdRule(monitor="h1", threshold=level, patience=patience)
    for level, patience in product((0.02, 0.05, 0.1, 0.2), PATIENCES):
        yield stop.MaskRule(threshold=level, patience=patience, min_adjusted_accuracy=0.0)
    for signal, collapse in product(("spectral_edge", "gap_23"), (2.0, 4.0, 10.0)):
        yield stop.ReopenRule(monitor=signal, collapse=collapse, min_adjusted_accuracy=0.0)


CANDIDATES: Final[tuple[stop.Rule, ...]] = tuple(_candidates())
"""Every candidate rule of a signal, fixed before any training was run."""


@dataclass(frozen=True, slots=True)
class Act:
    """When a rule first acted, and the validation accuracy then."""

    step: int
    accuracy: float


def find_act(rule: stop.Rule, training: WatchedTraining, chance_accuracy: float = 0.0) -> Act | None:
    """Return where a rule first acts, or ``None``.

    The rule is the one that ``train`` would run: it sees the readings of one step after the
    other, and no more.
    """
    parts = rule.rules if isinstance(rule, stop.ConsensusRule) else (rule,)
    read = {*(getattr(part, "monitor", "") for part in parts), "validation_accuracy", "collapse"}
    values = {name: dict(series) for name, series in training.series.items() if name in read}
    memory = stopping.start(rule, chance_accuracy=chance_accuracy)
    for step in sorted({step for each in values.values() for step in each}):
        readings = [
            Reading(signal=name, step=step, epoch=step / training.steps_per_epoch, value=each[step])
            for name, each in values.items()
            if step in each
        ]
        memory, verdict = stopping.step(rule, memory, readings)
        if verdict.act:
            return Act(step, values["validation_accuracy"].get(step) or 0.0)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """The alarms of a rule: by how many epochs each led, of trainings that reached the level.

    A miss (no alarm before) leads by nothing. ``false_alarms`` are those on controls, which never reach it.
    """

    rule: stop.Rule
    lead_epochs: tuple[float, ...]
    misses: int
    false_alarms: int
    controls: int

    @property
    def hits(self) -> int:
        """Trainings with an alarm before the level."""
        return len(self.lead_epochs) - self.misses

    @property
    def mean_lead_epochs(self) -> float:
        """Epochs by which the alarm led, on average."""
        return fmean(self.lead_epochs) if self.lead_epochs else 0.0

    @property
    def value(self) -> float:
        """Hits less false alarms, each as a share; of equal ones the longer lead counts."""
        hits = self.hits / max(1, len(self.lead_epochs))
        return hits - self.false_alarms / max(1, self.controls) + 1e-6 * self.mean_lead_epochs

    @property
    def errors_and_lead(self) -> tuple[int, float]:
        """Misses and false alarms, which count alike, and less the lead: the lower, the better the rule."""
        return self.false_alarms + self.misses, -self.mean_lead_epochs


def count_alarms(
    rule: stop.Rule, learned: Sequence[WatchedTraining], controls: Sequence[WatchedTraining]
) -> Alarms:
    """Run a rule over trainings that reached the level and over some that never did."""
    leads = []
    for each in learned:
        act = find_act(rule, each)
        assert each.reached_step is not None, "a training that reached the level"
        leads.append(0.0 if act is None else (each.reached_step - act.step) / each.steps_per_epoch)
    return Alarms(
        rule=rule,
        lead_epochs=tuple(leads),
        misses=sum(lead <= 0 for lead in leads),
        false_alarms=sum(find_act(rule, each) is not None for each in controls),
        controls=len(controls),
    )


def choose_rule(
    signal: str, learned: Sequence[WatchedTraining], controls: Sequence[WatchedTraining]
) -> Alarms:
    """Return the signal's candidate with the fewest errors there, and of such the one that leads most."""
    rules = (rule for rule in CANDIDATES if getattr(rule, "monitor", "") == signal)
    return min(
        (count_alarms(rule, learned, controls) for rule in rules), key=lambda each: each.errors_and_lead
    )


_FALLS: Final = {name: stop.ChangeRule(monitor=name, factor=1.1) for name in ("d_eff", "validation_loss")}
DRAW_RULES: Final[Mapping[str, stop.Rule]] = {
    "default": stop.Stop().draw,
    "wider plateau": stop.PlateauRule(tolerance=0.1),
    "longer plateau": stop.PlateauRule(patience=5),
    "plateau of the loss": stop.PlateauRule(monitor="validation_loss", tolerance=0.1),
    "fall of d_eff": _FALLS["d_eff"],
    "fall of the loss": _FALLS["validation_loss"],
    "fall of the loss, no hold": stop.ChangeRule(
        monitor="validation_loss", factor=1.1, min_adjusted_accuracy=0.0
    ),
    "Early-Bird": stop.MaskRule(),
    "Early-Bird, no hold": stop.MaskRule(min_adjusted_accuracy=0.0),
    "loops": stop.ThresholdRule(monitor="h1", threshold=3.0, min_adjusted_accuracy=0.5),
    "edge": stop.ReopenRule(),
    "accuracy": stop.ThresholdRule(monitor="validation_accuracy", threshold=0.9),
    "both falls": stop.ConsensusRule(rules=tuple(_FALLS.values())),
}
"""Rules that a recipe might name under ``[stop.draw]``: the default first, fixed before any was tried."""
