"""Study ``antidistillation``: how well a stranger learns from what a ticket writes, and how to spoil that.

A dense language model is cut and trained on; a student that knows nothing learns from the ticket's samples.
These are drawn as they are, hotter, or so that what they teach a proxy of the student raises its loss.

Shape letters: n sequences, l places, v words.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tpsprune
from tpsprune import recipe
from tpsprune.data import Split
from tpsprune.numerics.decoding import Reader, draw_words
from tpsprune.numerics.forward import logits_of
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune_studies.edge_position import TEXT_CHANGES, TEXT_RECIPE
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Prepared, Setup, at_seed, prepare, resize

TEXT: Final = "text itself"
DENSE: Final = "samples of the dense model"
RATE: Final = 3e-3
DENSE_STEPS: Final = 400
SHARE: Final = 0.5
CALIBRATION_ITEMS: Final = 256
RETRAIN_STEPS: Final = 100
STUDENT_STEPS: Final = 100
SEQUENCES: Final = 512
PROXY_ITEMS: Final = 256
"""Windows of the validation part, on which the proxy's loss has its gradient."""
EPSILON: Final = 1e-2
STRENGTHS: Final = (0.0, 1.0, 3.0, 10.0)
"""λ; at the first samples are drawn as they are."""
TEMPERATURES: Final = (1.3, 1.7)
STUDENT_SEED, PROXY_SEED = 100, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTrial:
    """A dense model with its ticket, a proxy and all students, by the seed of all that is random."""

    seed: int

    @property
    def arm(self) -> str:
        """What costs alike."""
        return "teacher"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """Bits a byte: of a student on the test text; of what it learned from, under dense model and ticket.

    ``never_in_text`` is the share of the bytes it learned from that the training text does not have at all.
    """

    student: float
    under_dense: float
    under_ticket: float
    never_in_text: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTraining:
    """What the models have on the test text, in bits a byte, and what students learned, by source."""

    trial: TeacherTrial
    dense: float
    ticket: float
    proxy: float
    untrained: float
    taught: Mapping[str, Taught]
    seconds: float = 0.0

    def excess(self, strength: float) -> float | None:
        """Return the student's bits at a strength less those by heat that the dense model finds as unlikely.

        On the line between two temperatures; none where no temperature here goes as far.
        """
        protected = self.taught[protected_by(strength)]
        heated = [self.taught[protected_by(0.0)], *(self.taught[heated_to(each)] for each in TEMPERATURES)]
        for low, high in pairwise(heated):
            if low.under_dense <= protected.under_dense <= high.under_dense:
                along = (protected.under_dense - low.under_dense) / (high.under_dense - low.under_dense)
                return protected.student - low.student - along * (high.student - low.student)
        return None


TRAINING: Final = TeacherTraining


def protected_by(strength: float) -> str:
    """Return the name of samples drawn at a strength λ."""
    return f"ticket, λ = {strength:g}"


def heated_to(temperature: float) -> str:
    """Return the name of samples drawn at a temperature."""
    return f"ticket, τ = {temperature:g}"


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size; the cap is the number of a student's steps."""
    return resize(Setup(recipe=recipe, seeds=3, cap_steps=STUDENT_STEPS), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[TeacherTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every seed."""
    return Plan(tuple(TeacherTrial(seed=seed) for seed in setup.pair_seeds))


def run(setup: Setup, trial: TeacherTrial) -> TeacherTraining:
    """Train a dense model, cut it, and teach students of every source of samples.

    Raises:
        DivergedError: a loss is no longer finite.
    """
    text = _prepare(setup, trial.seed)
    dense = _train(text, DENSE_STEPS)
    calibration, _ = text.sample_calibration(CALIBRATION_ITEMS)
    cut = tpsprune.extract(dense, [calibration], tpsprune.Macs(SHARE), quality="fast", widths="uniform")
    ticket = _train(replace(text, model=cut.ticket), RETRAIN_STEPS)
    generator = torch.Generator().manual_seed(trial.seed)
    order = torch.randperm(len(text.dataset.train), generator=generator)[:SEQUENCES]
    real = text.dataset.train.at(order)
    first_n1 = real.inputs[:, :1]

    def samples(follow: Any) -> Split:
        length = real.inputs.shape[1] + 1
        words_nl = draw_words(follow, first_n1, length, generator)
        return Split(words_nl[:, :-1], words_nl[:, 1:])

    def teach(split: Split, seed: int) -> nn.Module:
        fresh = _prepare(setup, trial.seed + seed)
        return _train(replace(fresh, dataset=replace(fresh.dataset, train=split)), setup.cap_steps)

    with torch.no_grad():
        plain = samples(Reader(ticket).read)
    proxy = teach(plain, PROXY_SEED)
    held = text.dataset.validation
    slope = slope_of(proxy, held.inputs[:PROXY_ITEMS], held.labels[:PROXY_ITEMS])
    splits = {TEXT: real}
    with torch.no_grad():
        splits[DENSE] = samples(Reader(dense).read)
        for strength in STRENGTHS:
            splits[protected_by(strength)] = samples(Protected(ticket, proxy, slope, strength).follow)
        for temperature in TEMPERATURES:
            hot = Protected(ticket, proxy, slope, 0.0, temperature)
            splits[heated_to(temperature)] = samples(hot.follow)
    in_text = torch.unique(text.dataset.train.labels)
    taught = {}
    for name, split in splits.items():
        student = teach(split, STUDENT_SEED)
        taught[name] = Taught(
            student=_bits(text, student),
            under_dense=_bits(text, dense, split),
            under_ticket=_bits(text, ticket, split),
            never_in_text=float((~torch.isin(split.labels, in_text)).double().mean()),
        )
    return TeacherTraining(
        trial=trial,
        dense=_bits(text, dense),
        ticket=_bits(text, ticket),
        proxy=_bits(text, proxy),
        untrained=_bits(text, _prepare(setup, trial.seed + STUDENT_SEED).model),
        taught=taught,
    )


def _prepare(setup: Setup, seed: int) -> Prepared:
    chosen = recipe.read(TEXT_RECIPE, TEXT_CHANGES)
    return prepare(at_seed(chosen, seed, threads=setup.threads, learning_rate=RATE))


def _train(prepared: Prepared, steps: int) -> nn.Module:
    for _ in prepared.fit(steps):
        pass
    return prepared.model.eval()


def _bits(text: Prepared, model: nn.Module, split: Split | None = None) -> float:
    return text.evaluate(split or text.dataset.test, model).loss / log(2)


def slope_of(model: nn.Module, inputs_nl: Tensor, labels_nl: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a model's mean loss by each parameter's name."""
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}
    with torch.enable_grad():
        loss = cross_entropy(logits_of(model(inputs_nl)).flatten(0, 1), labels_nl.flatten())
        found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def moved(model: nn.Module, slope: Mapping[str, Tensor], by: float) -> nn.Module:
    """Return a copy of a model whose parameters are θ + by · g."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for name, each in found.named_parameters():
            if name in slope:
                each.add_(slope[name], alpha=by)
    return found


class Protected:
    """A teacher whose words are drawn from softmax(log p_T / τ + λ Δ), as they come.

    Δ(y) = [log p(y; θ_P + ε g) − log p(y; θ_P − ε g)] / 2ε is how much a step of the proxy's that makes y
    likelier raises the proxy's loss, whose gradient is g.

    Source: Savani et al. 2025, "Antidistillation sampling" (arXiv 2504.13146).
    """

    def __init__(
        self,
        teacher: nn.Module,
        proxy: nn.Module,
        slope: Mapping[str, Tensor],
        strength: float,
        temperature: float = 1.0,
    ) -> None:
        self._teacher = Reader(teacher)
        self._up, self._down = (Reader(moved(proxy, slope, by)) for by in (EPSILON, -EPSILON))
        self._strength, self._temperature = strength, temperature

    def rise(self, words_nl: Tensor) -> Tensor:
        """Return Δ (n, v) of each word that may follow these and those before."""
        up_nv, down_nv = (each.read(words_nl).log_softmax(1) for each in (self._up, self._down))
        return (up_nv - down_nv) / (2 * EPSILON)

    def follow(self, words_nl: Tensor) -> Tensor:
        """Return the scores (n, v) that the next words are drawn from."""
        own_nv = self._teacher.read(words_nl).log_softmax(1) / self._temperature
        return own_nv + self._strength * self.rise(words_nl)


def conclude(setup: Setup, done: Sequence[TeacherTraining], machine: Mapping[str, Any]) -> Finding:
    """Return what protection costs students, as it is and beside heat; the ruling is on the latter."""
    plain = protected_by(0.0)
    costs = {
        strength: mean_interval(
            each.taught[protected_by(strength)].student - each.taught[plain].student for each in done
        )
        for strength in STRENGTHS[1:]
    }
    beside_heat = {strength: _beside_heat(done, strength) for strength in STRENGTHS[1:]}
    return Finding(
        name="antidistillation",
        setup=setup,
        machine=machine,
        ruling=_rule(beside_heat.values()),
        quantities=(
            *(
                Quantity(
                    name=f"λ = {strength:g}: beside heat that the dense model finds as unlikely",
                    predicted="above 0",
                    measured=each,
                )
                for strength, each in beside_heat.items()
                if each is not None
            ),
            *(
                Quantity(name=f"λ = {strength:g}: beside plain samples", predicted="", measured=each)
                for strength, each in costs.items()
            ),
        ),
        predicted_range=(0.0, None),
        figures={
            "costs": costs,
            "beside_heat": beside_heat,
            "sources": list(done[0].taught),
            "plain": plain,
            "mean_of": lambda name, figure: mean_interval(
                getattr(each.taught[name], figure) for each in done
            ),
        },
        trainings=tuple(done),
    )


def _beside_heat(done: Sequence[TeacherTraining], strength: float) -> Interval | None:
    """Return the mean excess; none where on some seed no temperature goes as far."""
    found = [each.excess(strength) for each in done]
    return mean_interval(each for each in found if each is not None) if None not in found else None


def _rule(beside_heat: Any) -> Ruling:
    """Return confirmed where some strength surely costs students more than heat, refuted where none may.

    Undecided, too, where nothing could be compared.
    """
    found = [each for each in beside_heat if each is not None]
    if any(each.low > 0 for each in found):
        return Ruling.CONFIRMED
    return Ruling.REFUTED if found and all(each.high <= 0 for each in found) else Ruling.UNDECIDED
