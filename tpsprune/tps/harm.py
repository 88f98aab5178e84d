"""Does ``fourier`` pull against the task? Rules over numbers: numbers in, a sentence or nothing out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["coherence_warning", "order_warning"]

_LEAST_READINGS: Final = 3
_LOSS_FALL_SHARE: Final = 1 / 3
_COHERENCE_RISE: Final = 0.02
_LOCKED: Final = 0.5
_IN_ORDER: Final = 0.5


def coherence_warning(coherences: Sequence[float], losses: Sequence[float]) -> str | None:
    """Return a sentence where the task is being learned and the triplets do not go along, else ``None``.

    Fires when, from the first to the last of the readings handed in (three at least, of equal number), the
    training loss fell by a third or more while mean coherence rose by less than 0.02 and is still below 0.5:
    coherence that is high already has nothing left to gain. Does not see why: a λ too small to act looks the
    same. Nor does it see harm under a λ that acts: in trials the penalty alone locked the weights within 100
    steps from λ = 0.1 on, whatever the data said; there ``order_warning`` is the one to go by.

    >>> print(coherence_warning([0.12, 0.12, 0.12], [3.9, 1.2, 0.4]))
    tps: coherence stays at 0.12 while the training loss fell from 3.9 to 0.4: the tokens may not be in \
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
        f"tps: coherence stays at {coherences[-1]:.2f} while the training loss fell from {losses[0]:.3g} to"
        f" {losses[-1]:.3g}: the tokens may not be in cyclic order; consider variant 'labels' or 'none'"
    )


def order_warning(agreement: float) -> str | None:
    """Return a sentence where the training labels follow no cyclic order of the tokens, else ``None``.

    ``agreement`` is ``numerics.phases.character_agreement`` of the training pairs: 1 for addition and
    subtraction in cyclic order, below 0.4 for either with tokens and answers renamed at random (largest of 60
    draws, 11 tokens; 0.1 for 59). Fires below 0.5.

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
