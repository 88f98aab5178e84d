"""A whole recipe: its sections, and the rules between fields, which bounds of one field cannot express.

A loss of the user's own is named by its dotted path, ``package.module:function``: **setting up such a recipe
runs that code**, see ``recipe.user_code``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Annotated, Final, Literal

from annotated_types import Predicate

from tpsprune.errors import Fault, did_you_mean
from tpsprune.recipe.bounds import Natural, section
from tpsprune.recipe.compare import Compare
from tpsprune.recipe.prune import Prune, Tolerance, Widths, calibration_faults, low_rank_faults
from tpsprune.recipe.spread import spread_faults
from tpsprune.recipe.stop import ConsensusRule, EpochRule, Rule, Stop
from tpsprune.recipe.task import (
    FOREIGN_MODELS,
    CustomData,
    Data,
    DigitsData,
    IdxData,
    ImageFolderData,
    IteratedData,
    TabularData,
    Task,
    TextData,
    TransformerModel,
    labels_wanted,
)
from tpsprune.recipe.train import Energy, Retrain, Tps, Train, Watch, rewind_epoch
from tpsprune.records import QUALITIES

SCHEMA = "tpsprune.recipe/1"


def is_name(text: str) -> bool:
    """Return whether a recipe may be called so: lower-case letters, digits, hyphens; it names files."""
    return re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", text) is not None


@section
class Recipe:
    """Everything that decides a run; equal recipes on equal machines give equal runs."""

    name: Annotated[str, Predicate(is_name)]
    shows: str = ""
    schema: Literal["tpsprune.recipe/1"] = "tpsprune.recipe/1"
    seed: Natural = 0
    task: Task
    train: Train
    tps: Tps = field(default_factory=Tps)
    watch: Watch = field(default_factory=Watch)
    stop: Stop = field(default_factory=Stop)
    prune: Prune = field(default_factory=Prune)
    retrain: Retrain = field(default_factory=Retrain)
    energy: Energy = field(default_factory=Energy)
    compare: Compare = field(default_factory=Compare)


SMOOTHED: Final = ("cross-entropy", "next-token")
"""Losses over classes, of which some of the certainty can be spread over the others."""
SOURCE_LABELS: Final = {"breast-cancer": "classes", "wine": "classes", "diabetes": "numbers"}
LOSS_OF: Final = {"classes": "cross-entropy", "numbers": "mse"}
OWN: Final = "a function of your own, 'package.module:function'"


def _loss_faults(recipe: Recipe) -> Iterator[Fault]:
    """Yield what does not fit: an unknown loss, data without such labels, smoothing without a meaning."""
    loss, data = recipe.task.loss, recipe.task.data
    own = ":" in loss
    if isinstance(data, TextData | TabularData) and (data.path is None) == (data.source is None):
        yield Fault("task.data", "give path or source, one of the two")
    if not own and loss not in QUALITIES:
        hint = did_you_mean(loss, QUALITIES) or f" (known: {', '.join(QUALITIES)})"
        yield Fault("task.loss", f"unknown loss '{loss}'{hint}; expected a known one or {OWN}")
        return
    smoothing = recipe.train.label_smoothing
    if smoothing > 0.0 and loss not in SMOOTHED:
        message = f"has no meaning with loss '{loss}'; expected 0 (found {smoothing:g})"
        yield Fault("train.label_smoothing", message)
    temperature = recipe.train.temperature
    if temperature != 1.0 and loss not in SMOOTHED:
        message = f"has no meaning with loss '{loss}'; expected 1 (found {temperature:g})"
        yield Fault("train.temperature", message)
    if recipe.retrain.teacher != "none" and own:
        message = f"what a ticket learns from the dense model's outputs is unknown with loss '{loss}'"
        yield Fault("retrain.teacher", f"{message}; use 'none', or one of {', '.join(QUALITIES)}")
    if isinstance(data, TextData | IteratedData):
        if not own and loss != "next-token":
            what = "byte" if data.kind == "text" else "word"
            message = f"data of kind '{data.kind}' have the next {what} for a label at every place"
            yield Fault("task.loss", f"{message}; expected 'next-token' or {OWN} (found '{loss}')")
    elif isinstance(data, TabularData):
        yield from _tabular_faults(data, loss, own=own)
    elif loss == "reconstruction":
        yield from _reconstruction_faults(data)
    elif not isinstance(data, CustomData) and not own and loss != "cross-entropy":
        message = f"data of kind '{data.kind}' have a class for a label; expected 'cross-entropy' or {OWN}"
        yield Fault("task.loss", f"{message} (found '{loss}')")


def _reconstruction_faults(data: Data) -> Iterator[Fault]:
    if isinstance(data, CustomData):
        message = "custom data have labels of their own; expected 'mse', with the inputs for labels"
        yield Fault("task.loss", f"{message} (found 'reconstruction')")
    elif not isinstance(data, DigitsData | IdxData | ImageFolderData):
        message = f"data of kind '{data.kind}' are no numbers that a model could give back"
        yield Fault("task.loss", f"{message}; expected 'cross-entropy' or {OWN} (found 'reconstruction')")
    elif data.augment != "none":
        message = f"an image is to be given back as it is; expected 'none' (found '{data.augment}')"
        yield Fault("task.data.augment", message)


def _tabular_faults(data: TabularData, loss: str, *, own: bool) -> Iterator[Fault]:
    if data.path is not None and data.target is None:
        yield Fault("task.data.target", "required with path, but missing: the column to predict")
    if data.source is not None:
        for key in ("target", "categorical", "leave_out"):
            if getattr(data, key):
                yield Fault(f"task.data.{key}", f"is read with path only (here source = '{data.source}')")
    if not own and loss not in LOSS_OF.values():
        message = "data of kind 'tabular' have one label a row; expected 'cross-entropy', 'mse'"
        yield Fault("task.loss", f"{message} or {OWN} (found '{loss}')")
        return
    found = SOURCE_LABELS.get(data.source or "", labels_wanted(data, loss))
    if own and data.labels == "auto" and data.source is None:
        message = "with a custom loss set what the target is: 'classes' or 'numbers'"
        yield Fault("task.data.labels", message)
    elif data.labels not in ("auto", found):
        message = f"the target of '{data.source}' holds {found} (found '{data.labels}')"
        yield Fault("task.data.labels", message)
    elif not own and loss != LOSS_OF[found]:
        message = f"the target holds {found}; expected '{LOSS_OF[found]}' or {OWN} (found '{loss}')"
        yield Fault("task.loss", message)


ALWAYS_READ: Final = ("train_loss", "validation_loss", "validation_accuracy")
READ_BY_SIGNAL: Final = {
    "h1": ("h1", "h1_max", "h1_total", "h1_sum_of_squares"),
    "spectral_edge": ("spectral_edge", "spectral_edge_k", "gap_23", "edge_gap", "edge_stability"),
    "neural_collapse": ("nc1", "nc2_norms", "nc2_angles", "nc3", "nc4"),
    "intrinsic_dimension": ("intrinsic_dimension", "two_nn_dimension"),
    "hessian": (
        "hessian_min",
        "hessian_max",
        "hessian_negative_share",
        "hessian_index",
        "hessian_index_share",
    ),
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


def signal_names(recipe: Recipe, place: str = "stop.draw") -> tuple[str, ...]:
    """Return the signals of the whole model that this recipe reads: those that rules at ``place`` use."""
    watched = watched_names(recipe.watch.signals)
    ends = place == "stop.end" and recipe.retrain.adapter != "none"  # then TPS does, with the draw
    variant = recipe.tps.variant if recipe.tps.coupling > 0 and not ends else "none"
    return (*ALWAYS_READ, *watched, *READ_BY_VARIANT[variant])


def watched_names(signals: Sequence[str]) -> tuple[str, ...]:
    """Return the names under which these signals are read of the whole model.

    >>> watched_names(("d_eff", "spectral_edge"))
    ('d_eff', 'spectral_edge', 'spectral_edge_k', 'gap_23', 'edge_gap', 'edge_stability')
    """
    return tuple(name for signal in signals for name in READ_BY_SIGNAL.get(signal, (signal,)))


def rule_faults(recipe: Recipe) -> list[Fault]:
    """Return every broken rule between fields."""
    faults = [
        *_rule_faults("stop.draw", recipe.stop.draw, recipe),
        *_rule_faults("stop.end", recipe.stop.end, recipe),
        *_loss_faults(recipe),
    ]
    if recipe.watch.every_epochs is not None and recipe.watch.every_steps is not None:
        faults.append(Fault("watch", "give every_epochs or every_steps, not both"))
    rewind = rewind_epoch(recipe.retrain.rewind)
    last_draw = recipe.stop.draw_by_share * recipe.train.epochs
    if rewind is not None and rewind >= recipe.train.epochs:
        faults.append(
            Fault("retrain.rewind", f"goes to epoch {rewind}, but train.epochs is {recipe.train.epochs:g}")
        )
    elif rewind is not None and rewind > last_draw:
        message = (
            f"goes to epoch {rewind}, but stop.draw_by_share has the ticket drawn by epoch {last_draw:g}"
        )
        faults.append(Fault("retrain.rewind", message))
    if recipe.stop.budget_joules is not None and recipe.energy.meter == "none":
        faults.append(Fault("stop.budget_joules", "needs a meter, but energy.meter is 'none'"))
    if (recipe.energy.replay is None) == (recipe.energy.meter == "replay"):
        message = (
            "is needed by meter 'replay': the energy.jsonl of a run"
            if recipe.energy.replay is None
            else f"is read by meter 'replay' only (here '{recipe.energy.meter}')"
        )
        faults.append(Fault("energy.replay", message))
    if doubled := sorted({name for name in recipe.watch.signals if recipe.watch.signals.count(name) > 1}):
        faults.append(Fault("watch.signals", f"names {', '.join(map(repr, doubled))} more than once"))
    faults += tps_faults(recipe.tps)
    if recipe.train.compile and recipe.tps.variant == "moments" and recipe.tps.coupling > 0:
        message = (
            "'moments' reads layers within the forward pass, which compiled code does not show; use false"
        )
        faults.append(Fault("train.compile", message))
    model = recipe.task.model
    if isinstance(model, TransformerModel) and model.width % model.heads:
        faults.append(
            Fault("task.model.heads", f"must divide width {model.width} evenly (found {model.heads})")
        )
    if isinstance(model, FOREIGN_MODELS) and model.weights is None and model.weights_match != "name":
        faults.append(Fault("task.model.weights_match", "is read with task.model.weights only"))
    faults += spread_faults(recipe.train, recipe.tps, recipe.watch, recipe.prune, recipe.retrain)
    return [*faults, *prune_faults(recipe.prune)]


def prune_faults(prune: Prune) -> list[Fault]:
    """Return every broken rule between fields of ``[prune]``."""
    faults = []
    if prune.round_to != "auto" and prune.min_width % prune.round_to:
        faults.append(Fault("prune.min_width", f"must be a multiple of round_to = {prune.round_to}"))
    if prune.repair is False and prune.repair_steps not in ("auto", 0):
        faults.append(Fault("prune.repair_steps", "is read with prune.repair only (here false)"))
    if prune.rounds > 1 and isinstance(prune.target, Tolerance | Widths):
        kinds = "macs, params, bytes, latency or joules"
        message = f"need a target of {kinds}, to go there in steps (found {prune.target})"
        faults.append(Fault("prune.rounds", message))
    return [*faults, *low_rank_faults(prune), *calibration_faults(prune)]


def tps_faults(tps: Tps) -> list[Fault]:
    """Return every broken rule between fields of ``[tps]``."""
    faults = []
    if tps.apply == "decoupled" and tps.variant in LOSS_ONLY:
        faults.append(Fault("tps.apply", f"'{tps.variant}' works in the loss only; use 'auto' or 'loss'"))
    if tps.variant == "bn-l1" and tps.coupling >= 1.0:
        message = "must be below 1 with 'bn-l1', where it multiplies the sum of scales: 1e-4 is published"
        faults.append(Fault("tps.coupling", f"{message} (found {tps.coupling:g})"))
    if tps.variant != "moments":
        faults += [
            Fault(f"tps.{key}", f"is read by variant 'moments' only (here '{tps.variant}')")
            for key, is_set in (("layers", tps.layers != ()), ("degree", tps.degree != 2))
            if is_set
        ]
    return faults


def _rule_faults(place: str, rule: Rule, recipe: Recipe) -> Iterator[Fault]:
    epochs = recipe.train.epochs
    after = recipe.retrain.epochs if place == "stop.end" and recipe.retrain.epochs != "rest" else 0
    for inner, each in _with_parts(place, rule):
        if isinstance(each, EpochRule) and each.epoch > epochs + after:
            yield Fault(f"{inner}.epoch", f"is after train.epochs = {epochs:g} (found {each.epoch:g})")
    yield from unread_faults(place, rule, signal_names(recipe, place), "in this recipe")


def unread_faults(place: str, rule: Rule, names: Sequence[str], where: str) -> list[Fault]:
    """Return the faults of a rule: a signal that is not among the ``names`` read, a consensus of too many."""
    faults = []
    for inner, each in _with_parts(place, rule):
        signal = getattr(each, "monitor", None)
        if isinstance(each, ConsensusRule) and each.at_least > len(each.rules):
            message = f"needs {each.at_least} of {len(each.rules)} rules"
            faults.append(Fault(f"{inner}.at_least", message))
        elif signal is not None and signal not in names:
            hint = did_you_mean(signal, names) or f" (read here: {', '.join(names)})"
            faults.append(Fault(f"{inner}.monitor", f"'{signal}' is not read {where}{hint}"))
    return faults


def _with_parts(place: str, rule: Rule) -> Iterator[tuple[str, Rule]]:
    """Yield a rule and those that a consensus is made of, each with its place."""
    yield place, rule
    if isinstance(rule, ConsensusRule):
        yield from ((f"{place}.rules.{rank}", each) for rank, each in enumerate(rule.rules))
