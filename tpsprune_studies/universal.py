"""Study ``universal``: what a language model learns of English from sequences that mean nothing.

One net from one start: trained on what random networks make of noise and then on text, or on text alone.
Before the first step on text it is held against a uniform guess and against counts over the very context that
it reads.

Shape letters: n windows, l places.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, log2
from typing import Any, Final

import torch
from torch import Tensor

from tpsprune import recipe
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune_studies.edge_position import TEXT_CHANGES, TEXT_RECIPE
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Prepared, Setup, at_seed, prepare, resize

PRETRAINED: Final = "pre-trained"
SCRATCH: Final = "from scratch"
PLACES: Final = 128
RATE: Final = 3e-3
PRETRAINING_STEPS: Final = 1000
SEQUENCES: Final = 16_384
TEXT_STEPS: Final = 600
SPARE_STEPS: Final = 500
"""That training from scratch goes beyond both others together, for what making the sequences costs."""
READINGS: Final = (0, 25, 50, 100, 200, 300, 450)
"""Steps on text before which bits are read; then every hundredth and the last."""
CHANGES: Final = (
    *TEXT_CHANGES,
    f"task.model.config.max_position_embeddings={PLACES}",
    "train.batch_size=16",
    "train.schedule=constant",
    "train.warmup_share=0.02",
)
ORDERS: Final = (0, 1, 2, 3)
BACKED_OFF: Final = "backed off"
STRENGTHS: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Of the uniform guess beside the counts, in observations; the best is taken, in favour of the counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UniversalTrial:
    """A training: from which start, and the seed of all that is random."""

    arm: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UniversalTraining:
    """Bits a byte of the test text by steps on text, and what the steps before them took.

    ``charged`` is the pre-training in steps on text of the same processor time, with what its sequences took.
    ``random_bits`` are those of such sequences held out, a word; ``counts`` the bits of each model of counts.
    """

    trial: UniversalTrial
    bits: Mapping[str, float]
    cpu_seconds: float
    charged: float = 0.0
    random_bits: float | None = None
    vocabulary: int
    counts: Mapping[str, float]
    seconds: float = 0.0

    def at(self, step: float) -> float:
        """Return the bits at a step, on the line between two readings."""
        readings = [(int(key), value) for key, value in self.bits.items()]
        for (first, before), (last, after) in pairwise(readings):
            if first <= step <= last:
                return before + (after - before) * (step - first) / (last - first)
        raise ValueError(f"no reading as late as step {step:g}")


TRAINING: Final = UniversalTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size; the cap is the number of steps on text."""
    return resize(Setup(recipe=recipe, seeds=4, cap_steps=TEXT_STEPS), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[UniversalTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return both starts on every seed."""
    return Plan(
        tuple(
            UniversalTrial(arm=arm, seed=seed) for seed in setup.pair_seeds for arm in (PRETRAINED, SCRATCH)
        )
    )


def run(setup: Setup, trial: UniversalTrial) -> UniversalTraining:
    """Train on text, after random sequences or not; read the bits of the test text on the way.

    Raises:
        DivergedError: a loss is no longer finite.
    """
    text = _prepare(setup, trial.seed, f"task.data.length={PLACES}")
    last, spent, random_bits = setup.cap_steps, 0.0, None
    if trial.arm == PRETRAINED:
        began = time.process_time()
        noise = _prepare(
            setup,
            trial.seed,
            f"task.data={{kind='iterated', length={PLACES}, items={SEQUENCES}, validation_share=0.01}}",
        )
        for _ in noise.fit(PRETRAINING_STEPS, model=text.model):
            pass
        spent = time.process_time() - began
        random_bits = _bits(noise, text)
    else:
        last += PRETRAINING_STEPS + SPARE_STEPS
    bits = {"0": _bits(text)}
    began = time.process_time()
    evaluating = 0.0
    for tick in text.fit(last, total_steps=setup.cap_steps + PRETRAINING_STEPS):
        if tick.step in {*READINGS, setup.cap_steps, last} or tick.step % 100 == 0:
            paused = time.process_time()
            bits[f"{tick.step}"] = _bits(text)
            evaluating += time.process_time() - paused
    on_text = time.process_time() - began - evaluating
    test, vocabulary = text.dataset.test, text.dataset.facts.vocabulary or 0
    return UniversalTraining(
        trial=trial,
        bits=bits,
        cpu_seconds=spent + on_text,
        charged=spent / on_text * last,
        random_bits=random_bits,
        vocabulary=vocabulary,
        counts=dict(bits_of_counts(test.inputs, test.labels, vocabulary)),
    )


def _prepare(setup: Setup, seed: int, data: str) -> Prepared:
    chosen = recipe.read(TEXT_RECIPE, (*CHANGES, data))
    return prepare(at_seed(chosen, seed, threads=setup.threads, learning_rate=RATE))


def _bits(of: Prepared, held_by: Prepared | None = None) -> float:
    """Return the bits of a word of the test split; the model may be another's on the same words."""
    return of.evaluate(of.dataset.test, (held_by or of).model).loss / log(2)


def bits_of_counts(inputs_nl: Tensor, labels_nl: Tensor, vocabulary: int) -> Iterable[tuple[str, float]]:
    """Yield the mean bits of each model of counts in a context, at the strength that suits it best.

    Plain ones look at the last k words; backed-off ones at k, k − 1, … 0.
    """
    plain = {f"order {order}": (order,) for order in ORDERS}
    backed = {f"order {order}, {BACKED_OFF}": tuple(range(order + 1)) for order in ORDERS[1:]}
    for name, orders in (plain | backed).items():
        found = (in_context(inputs_nl, labels_nl, orders, vocabulary, each) for each in STRENGTHS)
        yield name, min(float(-each.log2().mean()) for each in found)


def in_context(
    inputs_nl: Tensor, labels_nl: Tensor, orders: Iterable[int], vocabulary: int, strength: float
) -> Tensor:
    """Return the probability (n, l) of each label by counts over the words of its own window up to there.

    p₋₁ = 1 / v, and for each order k, from low to high, p_k = (c(w, y) + a p) / (c(w) + a), with p the one
    before, w the last k words, c how often w was followed by y, or by anything, so far, a the strength. With
    one order it is Laplace's rule, a / v added to every count. Before k words are read p_k = p. The first
    word of a window, which no place predicts, is a context and not counted as having followed.
    """
    place_l = torch.arange(inputs_nl.shape[1])
    earlier_ll = place_l[:, None] > place_l
    same_label_nll = labels_nl[:, :, None] == labels_nl[:, None, :]
    found_nl = torch.full(labels_nl.shape, 1 / vocabulary, dtype=torch.float64)
    for order in orders:
        same_nll = (earlier_ll & (place_l >= order - 1)).expand_as(same_label_nll)
        for back in range(order):
            moved_nl = inputs_nl.roll(back, 1)
            same_nll = same_nll & (moved_nl[:, :, None] == moved_nl[:, None, :])
        whole_nl = (place_l >= order - 1).double()
        seen_nl = same_nll.sum(2) * whole_nl
        followed_nl = (same_nll & same_label_nll).sum(2) * whole_nl
        found_nl = (followed_nl + strength * found_nl) / (seen_nl + strength)
    return found_nl


def conclude(setup: Setup, done: Sequence[UniversalTraining], machine: Mapping[str, Any]) -> Finding:
    """Return bits before text beside guesses and counts, and after it beside training from scratch.

    At equal processor time as far as training from scratch went on every seed; the ruling is on the last.
    """
    arms = {arm: [each for each in done if each.trial.arm == arm] for arm in (PRETRAINED, SCRATCH)}
    seeds = setup.pair_seeds
    first = [next(each for each in arms[PRETRAINED] if each.trial.seed == seed) for seed in seeds]
    rival = [next(each for each in arms[SCRATCH] if each.trial.seed == seed) for seed in seeds]
    plain = {name: bits for name, bits in first[0].counts.items() if BACKED_OFF not in name}
    best = min(plain, key=lambda name: plain[name])
    steps = [int(key) for key in first[0].bits]
    zero = mean_interval(each.at(0) for each in first)
    chance = mean_interval(each.at(0) - log2(each.vocabulary) for each in first)
    counted = mean_interval(each.at(0) - each.counts[best] for each in first)
    by_step = {
        step: mean_interval(one.at(step) - other.at(step) for one, other in zip(first, rival, strict=True))
        for step in steps
    }
    reached = min(int(list(each.bits)[-1]) for each in rival) - max(each.charged for each in first)
    by_time = {
        step: mean_interval(
            one.at(step) - other.at(step + one.charged) for one, other in zip(first, rival, strict=True)
        )
        for step in steps
        if step <= reached
    }
    last = max(by_time)
    return Finding(
        name="universal",
        setup=setup,
        machine=machine,
        ruling=_rule(chance, counted, by_time[last]),
        quantities=(
            Quantity(
                name="zero-shot bits a byte less those of a uniform guess",
                predicted="below 0",
                measured=chance,
            ),
            Quantity(name=f"less those of counts in context, {best}", predicted="below 0", measured=counted),
            Quantity(
                name=f"after {last} steps on text, less from scratch at equal processor time",
                predicted="below 0",
                measured=by_time[last],
            ),
            *(
                Quantity(
                    name=f"after {step} steps on text, less from scratch at equal steps",
                    predicted="",
                    measured=each,
                )
                for step, each in by_step.items()
            ),
        ),
        predicted_range=(None, 0.0),
        figures={
            "zero": zero,
            "chance": chance,
            "counted": counted,
            "best": best,
            "by_step": by_step,
            "by_time": by_time,
            "first": first,
            "rival": rival,
            "last": last,
        },
        trainings=tuple(done),
    )


def _rule(*differences: Interval) -> Ruling:
    """Return confirmed where every difference is surely below 0, refuted where one surely is not."""
    if all(each.high < 0 for each in differences):
        return Ruling.CONFIRMED
    return Ruling.REFUTED if any(each.low >= 0 for each in differences) else Ruling.UNDECIDED
