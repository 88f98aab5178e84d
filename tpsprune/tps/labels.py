"""``labels``: a unit's weight triplet synchronises through the training pairs, whatever tokens are called."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor, nn

from tpsprune.numerics.coherence import character_scale, unit_coherence
from tpsprune.records import TaskFacts
from tpsprune.tps.triplets import TripletVariant

__all__ = ["Labels"]


@final
class Labels(TripletVariant):
    """R_m = T_m / (s ‖u_m‖ ‖v_m‖ ‖o_m‖), T_m = Σ_i u_m(a_i) v_m(b_i) o_m(y_i) over the training pairs.

    Our instantiation, no formula has been published. R_m is largest at the top singular triples of the
    task's structure tensor; for a cyclic group those are the characters with φ_a + φ_b = ψ, which
    ``fourier`` is given and this finds. s is ``character_scale``: R_m is 1 for a character on the whole
    table, and on part of it may come out a little above; √2 for a character that is 1 or −1 everywhere, as
    the sign of permutations. Invariant under renaming tokens and classes; does not see test pairs, nor
    whether different units agree. Where the answers have no such structure R_m stays below 1 by a margin:
    the reading is itself a signal.
    Cost: one product of pairs × units and its backward pass, whatever the batch.
    """

    name: ClassVar[str] = "labels"
    needs: ClassVar[str] = "two token inputs and a model with unit triplets"

    def __init__(self, model: nn.Module, facts: TaskFacts, tokens_i2: Tensor, label_i: Tensor) -> None:
        super().__init__(model, tokens_i2)
        self._first_i, self._second_i = (tokens_i.contiguous() for tokens_i in self._tokens_i2.unbind(1))
        self._label_i = label_i.to(self._tokens_i2.device)
        self._scale = character_scale(len(label_i), facts.vocabulary or facts.classes, facts.classes)

    def coherences(self) -> Tensor:
        """Return R_m over the training pairs."""
        u_am, v_bm, o_mc = self._triplets()
        return unit_coherence(u_am, v_bm, o_mc, self._first_i, self._second_i, self._label_i) / self._scale
