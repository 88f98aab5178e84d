"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

from math import cos, pi

from tpsprune.recipe.train import Train

__all__ = ["learning_rate_at"]

START_SHARE = 1 / 25
END_SHARE = START_SHARE / 10_000


def learning_rate_at(step: int, total_steps: int, settings: Train) -> float:
    """Return the learning rate of step number ``step`` (from 0) of ``total_steps``.

    With w = ``warmup_share``, t = step / total_steps and the peak η = ``learning_rate``:

    - ``one-cycle``: half a cosine from η/25 up to η over w, then half a cosine down to η/250,000.
      Source: Smith and Topin 2018 (Super-convergence), with PyTorch's shape and no momentum cycle;
    - ``cosine``: linear from 0 over w, then half a cosine down to 0. Source: Loshchilov and Hutter 2017;
    - ``constant``: linear from 0 over w, then η.
    """
    warmup_steps = settings.warmup_share * total_steps
    peak = settings.learning_rate
    if step < warmup_steps:
        risen = (step + 1) / (warmup_steps + 1)
        if settings.schedule == "one-cycle":
            return peak * (START_SHARE + (1 - START_SHARE) * (1 - cos(pi * risen)) / 2)
        return peak * risen
    fallen = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    match settings.schedule:
        case "one-cycle":
            return peak * (END_SHARE + (1 - END_SHARE) * (1 + cos(pi * fallen)) / 2)
        case "cosine":
            return peak * (1 + cos(pi * fallen)) / 2
        case "constant":
            return peak
