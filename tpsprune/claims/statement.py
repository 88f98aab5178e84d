"""A claim in a sentence: a saving, a cost and a refusal in the same plain words."""

from __future__ import annotations

from dataclasses import replace

from tpsprune.records import Change, Claim, Standing

__all__ = ["statement_of"]

REFUSALS = {
    Standing.INVALID_MEASUREMENT: "the measurement is invalid",
    Standing.INSUFFICIENT_RUNS: "too few runs",
    Standing.ACCURACY_NOT_PRESERVED: "{quality} is not shown to be preserved",
    Standing.WITHIN_NOISE: "within noise",
    Standing.MODEL_SENSITIVE: "the sign hangs on the power model",
}


def statement_of(claim: Claim, quality: str = "accuracy") -> Claim:
    """Return the claim with its sentence; ``quality`` is what the figure of a model's quality is called."""
    return replace(claim, statement=_sentence(claim, quality))


def _sentence(claim: Claim, quality: str) -> str:
    subject = (
        f"Training '{claim.arm}'"
        if claim.kind == "training"
        else f"An answer of '{claim.arm}' at batch {claim.batch}"
    )
    refusal = REFUSALS.get(claim.standing)
    if refusal is not None:
        seen = "" if claim.change is None else f" Seen: {_words(claim.change)}."
        return f"{subject}: no claim against '{claim.baseline}', {refusal.format(quality=quality)}.{seen}"
    assert claim.change is not None, "what stands has a change"
    simulated = "simulated: " if str(claim.standing).endswith("SIMULATED") else ""
    return f"{subject} took {simulated}{_words(claim.change)} than '{claim.baseline}'."


def _words(change: Change) -> str:
    """Return the change as people say it.

    >>> half = Change(saving_share=0.5, low=0.4, high=0.6, pairs=6, deviation=0.1,
    ...               p_t=0.0, p_sign_flip=0.03, detectable_share=0.1)
    >>> _words(half)
    '50 % less energy (95 % interval 40 to 60 % less, 6 pairs)'
    >>> _words(replace(half, saving_share=-0.02, low=-0.04, high=0.01))
    '2.0 % more energy (95 % interval 4.0 % more to 1.0 % less, 6 pairs)'
    """
    ends = sorted((change.low, change.high), key=abs)
    if change.low * change.high >= 0:
        interval = f"{_number(ends[0])} to {_less(ends[1])}"
    else:
        interval = f"{_less(change.low)} to {_less(change.high)}"
    sides = _less(change.saving_share)
    return f"{sides} energy (95 % interval {interval}, {change.pairs} pairs)"


def _less(saving_share: float) -> str:
    return f"{_number(saving_share)} % {'less' if saving_share >= 0 else 'more'}"


def _number(saving_share: float) -> str:
    size = 100 * abs(saving_share)
    return f"{size:,.{0 if size >= 10 else 1}f}"
