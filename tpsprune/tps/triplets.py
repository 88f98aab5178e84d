"""``fourier`` and ``labels``: one triplet per unit, read from the model's weights at each step.

``labels`` synchronises it through the training pairs, whatever tokens are called; ``fourier`` locks its
phases along cyclic tokens, and two rules over numbers detect where that works against the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, cast, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.coherence import (
    character_agreement,
    character_scale,
    fourier_coherence,
    unit_coherence,
)
from tpsprune.records import TaskFacts
from tpsprune.tps.variant import (
    Group,
    UnitTriplets,
    Variant,
    full_precision,
    no_classes,
    working_precision,
)

_LEAST_READINGS: Final = 3
_LOSS_FALL_SHARE: Final = 1 / 3
_COHERENCE_RISE: Final = 0.02
_LOCKED: Final = 0.5
_IN_ORDER: Final = 0.5


class TripletVariant(Variant, ABC):
    """A variant whose triads lie within a unit: E = mean over units of 1 − R_m.

    One group, the units of the model's hidden layer; its oscillators are counted as one per unit, or two
    where units are gated and have two triplets each, which m then runs over. Units are not coupled to one
    another: a network needs to spread its phases and frequencies over units.
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


@final
class Labels(TripletVariant):
    """R_m = T_m / (s ‖u_m‖ ‖v_m‖ ‖o_m‖), T_m = Σ_i u_m(a_i) v_m(b_i) o_m(y_i) over the training pairs.

    Our instantiation, no formula has been published. R_m is largest at the top singular triples of the
    task's structure tensor; for a cyclic group those are the characters with φ_a + φ_b = ψ, which
    ``fourier`` assumes and this finds. s is ``character_scale``: R_m is 1 for a character on the whole
    table, and on part of it may be a little above; √2 for a character that is 1 or −1 everywhere, as
    the sign of permutations. Invariant under renaming tokens and classes; does not see test pairs, nor
    whether different units agree. Where the labels have no such structure R_m remains below 1 by a margin:
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


def coherence_warning(coherences: Sequence[float], losses: Sequence[float]) -> str | None:
    """Return a sentence where the task is being learned and the triplets do not go along, else ``None``.

    Fires when, from the first to the last of the readings handed in (three at least, of equal number), the
    training loss fell by a third or more while mean coherence rose by less than 0.02 and is still below 0.5:
    coherence that is high already has nothing left to gain. Does not see why: a λ too small to act gives the
    same readings. Nor does it see harm under a λ that acts: in trials the penalty alone locked the weights
    within 100 steps from λ = 0.1 on, whatever the data; there ``order_warning`` decides.

    >>> print(coherence_warning([0.12, 0.12, 0.12], [3.9, 1.2, 0.4]))
    tps: coherence remains at 0.12 while the training loss fell from 3.9 to 0.4: the tokens may not be in \
cyclic order; consider variant 'labels' or 'none'

    Source: our own observation on modular addition with relabelled tokens.
    """
    if min(len(coherences), len(losses)) < _LEAST_READINGS:
        return None
    learning = losses[-1] <= (1.0 - _LOSS_FALL_SHARE) * losses[0]
    following = coherences[-1] - coherences[0] >= _COHERENCE_RISE or coherences[-1] >= _LOCKED
    if following or not learning:
        return None
    return (
        f"tps: coherence remains at {coherences[-1]:.2f} while the training loss fell from {losses[0]:.3g} to"
        f" {losses[-1]:.3g}: the tokens may not be in cyclic order; consider variant 'labels' or 'none'"
    )


def order_warning(agreement: float) -> str | None:
    """Return a sentence where the training labels follow no cyclic order of the tokens, else ``None``.

    ``agreement`` is ``numerics.phases.character_agreement`` of the training pairs: 1 for addition and
    subtraction in cyclic order, below 0.4 for either with tokens and classes renamed at random (largest of 60
    samples, 11 tokens; 0.1 for 59). Fires below 0.5.

    >>> print(order_warning(0.06))
    tps: the training labels follow the tokens' cyclic order to 0.06 only, where 1 is wholly: \
consider variant 'labels' or 'none'

    Source: our own.
    """
    if agreement >= _IN_ORDER:
        return None
    return (
        f"tps: the training labels follow the tokens' cyclic order to {agreement:.2f} only, where 1 is"
        " wholly: consider variant 'labels' or 'none'"
    )
