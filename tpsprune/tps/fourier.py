"""``fourier``: a unit's weight triplet locks its phases, frequency by frequency, along cyclic tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from torch import Tensor, nn

from tpsprune.numerics.coherence import character_agreement, fourier_coherence
from tpsprune.records import TaskFacts
from tpsprune.tps.harm import coherence_warning, order_warning
from tpsprune.tps.triplets import TripletVariant

__all__ = ["Fourier"]


@final
class Fourier(TripletVariant):
    """R_m = Re Σ_k U V conj(O) / Σ_k |U V O|, the best of four sign patterns per unit; our instantiation.

    U, V, O are the discrete Fourier transforms of what the first token, the second token and the class mean
    to the unit. Needs tokens and classes in cyclic order, as many of the one as of the other: elsewhere it
    sees order that is not there, and does harm. Reads weights only, no data. Cost: three transforms of
    tokens × units.
    """

    name: ClassVar[str] = "fourier"
    needs: ClassVar[str] = (
        "two token inputs in cyclic order, as many classes as tokens and a model with unit triplets"
    )

    def __init__(self, model: nn.Module, facts: TaskFacts, tokens_i2: Tensor, label_i: Tensor) -> None:
        super().__init__(model, tokens_i2)
        agreement = character_agreement(tokens_i2[:, 0], tokens_i2[:, 1], label_i, facts.classes)
        self._order_note = order_warning(agreement)

    @staticmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:
        """Return what is not here, or ``None``."""
        missing = TripletVariant.missing(model, facts)
        if missing is None and not facts.cyclic:
            return "the tokens of this task have no cyclic order"
        if missing is None and facts.vocabulary != facts.classes:
            return f"this task has {facts.vocabulary} tokens and {facts.classes} classes"
        return missing

    def harm_note(self, coherences: Sequence[float], losses: Sequence[float]) -> str | None:
        """Return what speaks against cyclic order: the training labels first, then the readings."""
        return self._order_note or coherence_warning(coherences, losses)

    def coherences(self) -> Tensor:
        """Return R_m of the weights."""
        return fourier_coherence(*self._triplets())
