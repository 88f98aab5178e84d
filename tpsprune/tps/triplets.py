"""What ``fourier`` and ``labels`` have in common: one triplet per unit, read from the model at each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from tpsprune.records import TaskFacts
from tpsprune.tps.variant import (
    Group,
    UnitTriplets,
    Variant,
    full_precision,
    no_classes,
    working_precision,
)

__all__ = ["TripletVariant"]


class TripletVariant(Variant, ABC):
    """A variant whose triads lie within a unit: E = mean over units of 1 − R_m.

    One group, the units of the model's hidden layer; its oscillators are counted as one per unit, or two
    where units are gated and have two triplets each, which m then runs over. Units stay free of one another,
    as a network needs that spreads its phases and frequencies over units.
    """

    def __init__(self, model: nn.Module, tokens_i2: Tensor) -> None:
        self._model = cast(UnitTriplets, model)
        self._tokens_i2 = tokens_i2.to(next(model.parameters()).device)
        with torch.no_grad():
            units = self._triplets()[0].shape[1]
        self.groups = (Group("", units),)

    @staticmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:
        """Return what is not here, or ``None``."""
        if (labels := no_classes(facts)) is not None:
            return labels
        if facts.input_kind != "tokens":
            return f"this task has {facts.input_kind} inputs"
        if facts.input_shape != (2,):
            return f"this task has inputs of shape {facts.input_shape}"
        if getattr(model, "has_unit_triplets", False) is not True:
            return "this model has no unit triplets"
        return None

    @abstractmethod
    def coherences(self) -> Tensor:
        """Return R_m, the coherence of each unit's triplet, differentiable."""

    def energies(self, label_i: Tensor | None = None) -> Tensor:  # noqa: ARG002 -- it has its own pairs
        """Return 1 − mean R_m, as the one group's energy."""
        return 1.0 - self.coherences().mean(0, keepdim=True)

    @torch.no_grad()
    def readings(self) -> dict[str, Tensor]:
        """Return energy and mean coherence."""
        coherence_g = self.coherences().mean(0, keepdim=True)
        return {"tps_energy": 1.0 - coherence_g, "tps_coherence": coherence_g}

    def _triplets(self) -> tuple[Tensor, Tensor, Tensor]:
        with full_precision(self._tokens_i2):
            u_am, v_bm, o_mc = self._model.unit_triplets(self._tokens_i2)
        return working_precision(u_am), working_precision(v_bm), working_precision(o_mc)
