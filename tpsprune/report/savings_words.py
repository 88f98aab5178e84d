"""What a standing is called, in what tone it is shown, and a claim's figures in words."""

from __future__ import annotations

from typing import Final, Literal

from tpsprune.records import Accuracy, Change, Claim, Savings, Standing, Step
from tpsprune.report import words
from tpsprune.report.savings_blocks import Tagged
from tpsprune.report.savings_plot import honest, joined

__all__ = [
    "accuracy_of",
    "answer_of",
    "badge_of",
    "capital",
    "claim_of",
    "class_of",
    "in_words",
    "interval_of",
    "saving_of",
    "standing_words",
    "standing_words_of",
    "step_class",
    "tone_of",
    "training_of",
]

Tone = Literal["saves", "costs", "refused"]

_WORDS: Final[dict[Standing, str]] = {
    Standing.INVALID_MEASUREMENT: "The measurement does not hold",
    Standing.INSUFFICIENT_RUNS: "Too few runs to say",
    Standing.ACCURACY_NOT_PRESERVED: "{quality} not shown to be kept",
    Standing.WITHIN_NOISE: "No difference beyond the noise",
    Standing.MODEL_SENSITIVE: "Hangs on the power model",
    Standing.SAVING_MODELLED: "Takes less energy (modelled)",
    Standing.SAVING_MEASURED: "Takes less energy (measured)",
    Standing.SAVING_SIMULATED: "A simulated meter: nothing is shown",
    Standing.COST_INCREASE_MODELLED: "Takes more energy (modelled)",
    Standing.COST_INCREASE_MEASURED: "Takes more energy (measured)",
    Standing.COST_INCREASE_SIMULATED: "A simulated meter: nothing is shown",
}


def standing_words(standing: Standing, quality: str = "accuracy") -> str:
    """Return a standing as people say it; ``quality`` is what the figure of a model's quality is called."""
    return _WORDS[standing].format(quality=capital(quality))


def standing_words_of(claim: Claim, quality: str = "accuracy") -> str:
    """Return where a claim stands, in a few words for a table that begin with a small letter."""
    sentence = _WORDS[claim.standing]
    return (sentence[:1].lower() + sentence[1:]).format(quality=quality)


def capital(words_: str) -> str:
    """Return words as a sentence begins.

    >>> capital("label accuracy"), capital("R²")
    ('Label accuracy', 'R²')
    """
    return words_[:1].upper() + words_[1:]


def tone_of(standing: Standing) -> Tone:
    """Return how a standing is shown; a simulated saving is none."""
    if standing.is_saving:
        return "saves"
    if standing in {Standing.COST_INCREASE_MODELLED, Standing.COST_INCREASE_MEASURED}:
        return "costs"
    return "refused"


def badge_of(letter: str) -> str:
    """Return a grade as it is shown: a dash where nothing was metered.

    >>> badge_of("D"), badge_of("-")
    ('D', '–')
    """
    return "–" if letter == "-" else letter


def class_of(savings: Savings, shown: str) -> str:
    """Return an energy class of the records for a reader: never ``mixed``."""
    return honest(shown, [run.method for run in savings.comparison.runs])


def step_class(savings: Savings, step: Step) -> str:
    """Return of what classes the joules of a step of the attribution are made, both its arms' together."""
    shown = [run.energy_class for run in savings.runs if run.counted and run.arm in {step.arm, step.baseline}]
    return joined(class_of(savings, each) for each in shown)


def claim_of(savings: Savings, arm: str, batch: int | None = None) -> Claim | None:
    """Return the claim about an arm's answers at ``batch``, or without one about its training."""
    return next((c for c in savings.claims if (c.arm, c.batch) == (arm, batch)), None)


def training_of(savings: Savings) -> Claim:
    """Return the training claim of the verdict's arm; the verdict where there is none."""
    return claim_of(savings, savings.verdict.arm) or savings.verdict


def answer_of(savings: Savings) -> Claim | None:
    """Return the inference claim of the verdict's arm at the first batch size that was fixed beforehand."""
    return next((c for c in savings.claims if c.kind == "inference" and c.arm == savings.verdict.arm), None)


def accuracy_of(savings: Savings) -> Accuracy | None:
    """Return the accuracy of the verdict's arm beside its baseline's."""
    return next((each for each in savings.accuracies if each.arm == savings.verdict.arm), None)


def saving_of(change: Change | None, energy_class: str) -> Tagged:
    """Return a change in words with its class."""
    return Tagged("not known" if change is None else words.change(change.saving_share), energy_class)


def interval_of(change: Change | None, energy_class: str) -> Tagged:
    """Return the bounds of a change in words, with its class."""
    if change is None:
        return Tagged("no interval", energy_class)
    return Tagged(words.change_between(change.low, change.high), energy_class)


def in_words(claim: Claim, joules: float | None) -> str:
    """Return the joules of a claim: of a training, or of an answer."""
    if joules is None:
        return "not known"
    return words.joules(joules) if claim.kind == "training" else words.small_joules(joules)
