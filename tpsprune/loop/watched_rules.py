"""What a rule needs of what is read: its signals, an accuracy, an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tpsprune.errors import DataError, Fault, RecipeError
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.recipe.schema import unread_faults
from tpsprune.recipe.stop import ConsensusRule, EpochRule, Rule

__all__ = ["chance_for", "faults_of_rules"]


def faults_of_rules(place: str, rule: Rule, names: Sequence[str], *, has_epoch: bool) -> list[Fault]:
    """Return a fault for everything that a rule looks at and that is not among the ``names`` read.

    A rule that waits for something to be learned, without an accuracy, would wait for ever.
    """
    faults = unread_faults(place, rule, names, "here")
    for where, each in _parts(place, rule):
        if isinstance(each, EpochRule) and not has_epoch:
            words = "counts epochs: hand them in, as in step(step, epoch=step / steps_per_epoch)"
            faults.append(Fault(where, words))
        if _waits(each) and "validation_accuracy" not in names:
            words = (
                "waits for validation accuracy: hand it in, as in step(step, validation_accuracy=0.9),"
                " or set it to 0"
            )
            faults.append(Fault(f"{where}.learned_share", words))
    return faults


def _waits(rule: Rule) -> bool:
    """Return whether a rule, or a part of it, holds still until something is learned."""
    return any(getattr(each, "learned_share", 0.0) > 0.0 for _, each in _parts("", rule))


def chance_for(rule: Rule, given: float | None, model: nn.Module, batch: Any) -> float:
    """Return what guessing scores: as given, else one over the model's scores, where a rule asks for it.

    Raises:
        RecipeError: what is given is no share below 1.
        DataError: the model's answer is no table of scores, and nothing is given.
    """
    if given is not None:
        if not 0.0 <= given < 1.0:
            words = f"must be a share from 0 to below 1 (found {given:g})"
            raise RecipeError("Watch", [Fault("chance_accuracy", words)])
        return float(given)
    if not _waits(rule):
        return 0.0
    try:
        with torch.no_grad(), evaluation_mode(model):
            return 1.0 / logits_of(call_model(model, batch)).shape[-1]
    except (TypeError, IndexError) as error:
        raise DataError(f"Watch: {error}; chance_accuracy, what guessing scores, must be given") from error


def _parts(place: str, rule: Rule) -> Iterator[tuple[str, Rule]]:
    if isinstance(rule, ConsensusRule):
        for rank, each in enumerate(rule.rules):
            yield f"{place}.rules.{rank}", each
    else:
        yield place, rule
