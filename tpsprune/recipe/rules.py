"""Rules between fields: what single bounds cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tpsprune.errors import Fault, did_you_mean
from tpsprune.recipe.brought import BROUGHT
from tpsprune.recipe.energy import Energy
from tpsprune.recipe.loss import loss_faults
from tpsprune.recipe.retrain import rewind_epoch
from tpsprune.recipe.schema import Recipe
from tpsprune.recipe.stop import ConsensusRule, EpochRule, Rule
from tpsprune.recipe.target import Tolerance, Widths
from tpsprune.recipe.task import TransformerModel
from tpsprune.recipe.tps import Tps

__all__ = ["rule_faults", "signal_names", "tps_faults", "unread_faults", "watched_names"]

ALWAYS_READ: Final = ("train_loss", "validation_loss", "validation_accuracy")
READ_BY_SIGNAL: Final = {
    "h1": ("h1", "h1_max", "h1_total", "h1_sum_of_squares"),
    "spectral_edge": ("spectral_edge", "spectral_edge_k", "gap_23"),
}
"""Signals that read more than the number of their own name."""
READ_BY_VARIANT: Final = {
    "auto": (),
    "none": (),
    "weights": ("tps_energy", "tps_z1", "tps_z2"),
    "neurons": ("tps_energy", "tps_z1", "tps_z2"),
    "moments": ("tps_energy", "tps_coherence"),
    "fourier": ("tps_energy", "tps_coherence"),
    "labels": ("tps_energy", "tps_coherence"),
    "bn-l1": ("tps_energy",),
}
LOSS_ONLY: Final = ("moments", "fourier", "labels", "bn-l1")


def signal_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the signals of the whole model that this recipe reads: what its rules may look at."""
    watched = watched_names(recipe.watch.signals)
    variant = recipe.tps.variant if recipe.tps.coupling > 0 else "none"
    return (*ALWAYS_READ, *watched, *READ_BY_VARIANT[variant])


def watched_names(signals: Sequence[str]) -> tuple[str, ...]:
    """Return the names under which these signals are read of the whole model.

    >>> watched_names(("d_eff", "spectral_edge"))
    ('d_eff', 'spectral_edge', 'spectral_edge_k', 'gap_23')
    """
    return tuple(name for signal in signals for name in READ_BY_SIGNAL.get(signal, (signal,)))


def rule_faults(recipe: Recipe) -> list[Fault]:
    """Return every broken rule between fields."""
    faults = [*_rule_faults("stop.draw", recipe.stop.draw, recipe)]
    faults += _rule_faults("stop.end", recipe.stop.end, recipe)
    faults += loss_faults(recipe)
    if recipe.watch.every_epochs is not None and recipe.watch.every_steps is not None:
        faults.append(Fault("watch", "give every_epochs or every_steps, not both"))
    rewind = rewind_epoch(recipe.retrain.rewind)
    last_draw = recipe.stop.draw_by_share * recipe.train.epochs
    if rewind is not None and rewind >= recipe.train.epochs:
        faults.append(
            Fault("retrain.rewind", f"goes to epoch {rewind}, but train.epochs is {recipe.train.epochs}")
        )
    elif rewind is not None and rewind > last_draw:
        words = f"goes to epoch {rewind}, but stop.draw_by_share has the ticket drawn by epoch {last_draw:g}"
        faults.append(Fault("retrain.rewind", words))
    if recipe.stop.budget_joules is not None and recipe.energy.meter == "none":
        faults.append(Fault("stop.budget_joules", "needs a meter, but energy.meter is 'none'"))
    faults += _replay_faults(recipe.energy)
    if doubled := sorted({name for name in recipe.watch.signals if recipe.watch.signals.count(name) > 1}):
        faults.append(Fault("watch.signals", f"names {', '.join(map(repr, doubled))} more than once"))
    faults += tps_faults(recipe.tps)
    model = recipe.task.model
    if isinstance(model, TransformerModel) and model.width % model.heads:
        faults.append(
            Fault("task.model.heads", f"must divide width {model.width} evenly (found {model.heads})")
        )
    if isinstance(model, BROUGHT) and model.weights is None and model.weights_match != "name":
        faults.append(Fault("task.model.weights_match", "is read with task.model.weights only"))
    if recipe.prune.round_to > 1 and recipe.prune.min_width % recipe.prune.round_to:
        faults.append(Fault("prune.min_width", f"must be a multiple of round_to = {recipe.prune.round_to}"))
    if recipe.prune.rounds > 1 and isinstance(recipe.prune.target, Tolerance | Widths):
        words = (
            f"need a target of macs, params or latency, to go there in steps (found {recipe.prune.target})"
        )
        faults.append(Fault("prune.rounds", words))
    return faults


def tps_faults(tps: Tps) -> list[Fault]:
    """Return every broken rule between fields of ``[tps]``."""
    faults = []
    if tps.apply == "decoupled" and tps.variant in LOSS_ONLY:
        faults.append(Fault("tps.apply", f"'{tps.variant}' works in the loss only; use 'auto' or 'loss'"))
    if tps.variant == "bn-l1" and tps.coupling >= 1.0:
        words = "must be below 1 with 'bn-l1', where it weighs the plain sum of scales: 1e-4 is published"
        faults.append(Fault("tps.coupling", f"{words} (found {tps.coupling:g})"))
    if tps.variant != "moments":
        faults += [
            Fault(f"tps.{key}", f"is read by variant 'moments' only (here '{tps.variant}')")
            for key, given in (("layers", tps.layers != ()), ("degree", tps.degree != 2))
            if given
        ]
    return faults


def _replay_faults(energy: Energy) -> list[Fault]:
    if energy.meter == "replay" and energy.replay is None:
        return [Fault("energy.replay", "is needed by meter 'replay': the energy.jsonl of a run")]
    if energy.meter != "replay" and energy.replay is not None:
        return [Fault("energy.replay", f"is read by meter 'replay' only (here '{energy.meter}')")]
    return []


def _rule_faults(place: str, rule: Rule, recipe: Recipe) -> list[Fault]:
    own = recipe.retrain.epochs if place.startswith("stop.end") and recipe.retrain.epochs != "rest" else 0
    if isinstance(rule, EpochRule) and rule.epoch > recipe.train.epochs + own:
        return [
            Fault(f"{place}.epoch", f"is after train.epochs = {recipe.train.epochs} (found {rule.epoch:g})")
        ]
    if isinstance(rule, ConsensusRule):
        few = [] if rule.at_least <= len(rule.rules) else [_too_many(place, rule)]
        parts = (_rule_faults(f"{place}.rules.{rank}", each, recipe) for rank, each in enumerate(rule.rules))
        return [*few, *(fault for faults in parts for fault in faults)]
    return unread_faults(place, rule, signal_names(recipe), "in this recipe")


def unread_faults(place: str, rule: Rule, names: Sequence[str], where: str) -> list[Fault]:
    """Return a fault for each signal that a rule looks at and that is not among the ``names`` read."""
    if isinstance(rule, ConsensusRule):
        few = [] if rule.at_least <= len(rule.rules) else [_too_many(place, rule)]
        parts = (
            unread_faults(f"{place}.rules.{rank}", each, names, where) for rank, each in enumerate(rule.rules)
        )
        return [*few, *(fault for faults in parts for fault in faults)]
    signal = getattr(rule, "signal", None)
    if signal is None or signal in names:
        return []
    hint = did_you_mean(signal, names) or f" (read here: {', '.join(names)})"
    return [Fault(f"{place}.signal", f"'{signal}' is not read {where}{hint}")]


def _too_many(place: str, rule: ConsensusRule) -> Fault:
    return Fault(f"{place}.at_least", f"asks for {rule.at_least} of {len(rule.rules)} rules")
