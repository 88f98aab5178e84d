"""What cannot be done yet with a model that is spread over processes, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tpsprune.errors import Fault
from tpsprune.recipe.prune import BY_GRADIENTS, Joules, Latency, Prune
from tpsprune.recipe.train import Retrain, Tps, Train, Watch

UNREAD: Final = ("commutator_defect", "hessian")
"""Signals that are not read of a spread model: they differentiate by weights that no process has whole."""


def spread_faults(train: Train, tps: Tps, watch: Watch, prune: Prune, retrain: Retrain) -> Iterator[Fault]:
    """Yield what a recipe asks for that ``train.spread = "shard"`` cannot do, and what works instead."""
    if train.spread != "shard":
        if prune.gather is not None:
            yield Fault("prune.gather", "is read with train.spread = 'shard' only (here 'replicate')")
        return
    not_done: list[tuple[str, object, bool, str]] = [
        ("train.optimizer", train.optimizer, train.optimizer == "muon", "'adamw' or 'sgd'"),
        ("train.compile", train.compile, train.compile, "false"),
        (
            "train.memory_format",
            train.memory_format,
            train.memory_format == "channels-last",
            "'contiguous', which 'auto' is then",
        ),
        ("tps.variant", tps.variant, tps.variant not in {"none", "auto"}, "'none'"),
        ("retrain.adapter", retrain.adapter, retrain.adapter != "none", "'none'"),
        ("prune.calibration", prune.calibration, prune.calibration == "synthetic", "'data'"),
        ("prune.low_rank", prune.low_rank, prune.low_rank == "auto", "false"),
        (
            "prune.target",
            str(prune.target),
            isinstance(prune.target, Latency | Joules),
            "macs, params, bytes, tolerance or widths",
        ),
    ]
    if prune.gather != "host":
        not_done += _needs_memory(prune)
    for place, found, is_asked, remedy in not_done:
        if is_asked:
            message = f"is not done yet with train.spread = 'shard'; use {remedy} (found {found!r})"
            yield Fault(place, message)
    for name in UNREAD:
        if name in watch.signals:
            yield Fault("watch.signals", f"'{name}' cannot be read yet with train.spread = 'shard'")


def _needs_memory(prune: Prune) -> list[tuple[str, object, bool, str]]:
    """Return what takes a whole model, or its gradients, into memory after all, where it is cut in files."""
    repairs = prune.repair is not False and prune.repair_steps not in ("auto", 0)
    or_host = "or prune.gather = 'host', which has the memory of one machine for it"
    return [
        (
            "prune.units",
            prune.units,
            prune.units in BY_GRADIENTS,
            f"an importance without gradients, {or_host}",
        ),
        ("prune.low_rank", prune.low_rank, prune.low_rank is True, f"false, {or_host}"),
        ("prune.repair", prune.repair, prune.repair is True, f"'auto', {or_host}"),
        (
            "prune.repair_steps",
            prune.repair_steps,
            repairs,
            f"'auto', {or_host}",
        ),
    ]
