"""Study ``plateau``: what a transformer does on the plateau before it learns abruptly, and what moves first.

The published task and model, small: sums of two neighbours modulo 17, one layer of linear attention. While it
learns, repetition of its outputs, likeness of its hidden states and progress of its attention are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune.signals.representations import mean_cosine
from tpsprune_studies.finding import Curve, Finding, Panel, Plan, Quantity, Ruling
from tpsprune_studies.setup import Setup, resize

NUMBERS: Final = 16
"""Of a sequence; each is 1 to 16, and token 17 stands between them and their sums."""
MODULUS: Final = 17
SEPARATOR: Final = 17
WIDTH: Final = 96
BATCH_ITEMS: Final = 48
TEST_ITEMS: Final = 256
LEARNING_RATE: Final = 3e-4
READING_STEPS: Final = 20
STEPS: Final = 1200
LEARNED: Final = 0.95
LEAVING: Final = 0.25
"""Accuracy at which the plateau has ended; chance is 0.06."""
PARALLEL: Final = 0.95
MOST: Final = 0.5
"""Share of the plateau's readings that have to be so."""
NAMES: Final = {"likeness": "cosine of two places", "repetition": "repetition"}
MOVED: Final = 1.5
"""Times its first reading attention progress has to be to have moved."""


@final
class LinearAttention(nn.Module):
    """One layer: causal attention without softmax, over √d, then an MLP; norms before each and at the end.

    ``forward`` returns scores and hidden states before the head; ``attention`` the matrix of the layer.

    Source: Gopalani and Hu 2025 (arXiv 2506.13688), there 256 wide.
    """

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(MODULUS + 1, width)
        self.places = nn.Embedding(length, width)
        self.before, self.between, self.after = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, MODULUS + 1, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def attention(self, stream_nld: Tensor) -> Tensor:
        """Return the weights (n, l, l) by which each place hears those up to itself."""
        normed_nld = self.before(stream_nld)
        weights_nll = self.q(normed_nld) @ self.k(normed_nld).mT / stream_nld.shape[-1] ** 0.5
        found: Tensor = weights_nll.tril()
        return found

    def embed(self, tokens_nl: Tensor) -> Tensor:
        """Return what enters the layer (n, l, d)."""
        places_l = torch.arange(tokens_nl.shape[1], device=tokens_nl.device)
        found: Tensor = self.tokens(tokens_nl) + self.places(places_l)
        return found

    def forward(self, tokens_nl: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (n, l, 18) and hidden states (n, l, d)."""
        stream_nld = self.embed(tokens_nl)
        heard_nld = self.attention(stream_nld) @ self.v(self.before(stream_nld))
        stream_nld = stream_nld + self.o(heard_nld)
        hidden_nld = self.after(stream_nld + self.mlp(self.between(stream_nld)))
        return self.head(hidden_nld), hidden_nld


def draw_sums(items: int, generator: torch.Generator) -> Tensor:
    """Return sequences x₁ … x₁₆, 17, y₁ … y₁₆ with y₁ = x₁ and y_i = (x_{i−1} + x_i) mod 17.

    >>> found = draw_sums(1, torch.Generator().manual_seed(0))[0]
    >>> bool(found[17] == found[0]), bool(found[18] == (found[0] + found[1]) % 17)
    (True, True)
    """
    x_nk = torch.randint(1, NUMBERS + 1, (items, NUMBERS), generator=generator)
    y_nk = (x_nk + functional.pad(x_nk, (1, 0))[:, :-1]) % MODULUS
    return torch.cat([x_nk, torch.full((items, 1), SEPARATOR), y_nk], dim=1)


def repetition(decided_nk: Tensor) -> float:
    """Return the share of neighbouring outputs that are the same."""
    return float((decided_nk[:, 1:] == decided_nk[:, :-1]).double().mean())


def likeness_of_places(hidden_nkd: Tensor) -> float:
    """Return the mean cosine between two output places of one sequence, the first left out as published."""
    cosines = [mean_cosine(each) for each in hidden_nkd[:, 1:]]
    return sum(cosines) / len(cosines)


def attention_progress(weights_nkl: Tensor) -> float:
    """Return the share of |attention| of the output places that falls on the numbers they depend on."""
    mask_kl = torch.zeros(weights_nkl.shape[1:])
    for place in range(len(mask_kl)):
        mask_kl[place, max(0, place - 1) : place + 1] = 1.0
    heard_n = (weights_nkl.abs() * mask_kl).sum((1, 2)) / weights_nkl.abs().sum((1, 2))
    return float(heard_n.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauTrial:
    """A training by its seed."""

    seed: int

    @property
    def arm(self) -> str:
        """All are one arm."""
        return "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauTraining:
    """The readings of a training, each a list over ``steps``."""

    trial: PlateauTrial
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    repetition: tuple[float, ...]
    likeness: tuple[float, ...]
    progress: tuple[float, ...]
    seconds: float = 0.0

    @property
    def left_at(self) -> int | None:
        """The place of the first reading after the plateau; none where it was never left."""
        return next((place for place, value in enumerate(self.accuracy) if value >= LEAVING), None)

    @property
    def moved_at(self) -> int | None:
        """The place of the first reading at which attention progress has moved."""
        return next(
            (place for place, value in enumerate(self.progress) if value >= MOVED * self.progress[0]), None
        )


TRAINING: Final = PlateauTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=5, cap_steps=STEPS), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[PlateauTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every seed."""
    return Plan(tuple(PlateauTrial(seed=seed) for seed in setup.pair_seeds))


def run(setup: Setup, trial: PlateauTrial) -> PlateauTraining:
    """Train until the sums are right, and read on the way."""
    torch.set_num_threads(setup.threads)
    torch.manual_seed(trial.seed)
    generator = torch.Generator().manual_seed(trial.seed)
    model = LinearAttention(WIDTH, 2 * NUMBERS)
    test_nl = draw_sums(TEST_ITEMS, generator)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    readings: list[tuple[float, ...]] = []
    for step in range(setup.cap_steps + 1):
        if step % READING_STEPS == 0:
            readings.append((step, *_read(model, test_nl)))
            if readings[-1][2] >= LEARNED:
                break
        tokens_nl = draw_sums(BATCH_ITEMS, generator)
        scores_nlv, _ = model(tokens_nl[:, :-1])
        loss = functional.cross_entropy(scores_nlv.flatten(0, 1), tokens_nl[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    columns = [tuple(float(f"{value:.5g}") for value in column) for column in zip(*readings, strict=True)]
    steps, *figures = columns
    names = ("loss", "accuracy", "repetition", "likeness", "progress")
    series: dict[str, Any] = dict(zip(names, figures, strict=True))
    return PlateauTraining(trial=trial, steps=tuple(int(each) for each in steps), **series)


def _read(model: LinearAttention, test_nl: Tensor) -> tuple[float, ...]:
    """Return loss and accuracy of the sums, repetition, likeness of places, attention progress."""
    with torch.no_grad():
        inputs_nl, outputs = test_nl[:, :-1], slice(NUMBERS, None)
        scores_nlv, hidden_nld = model(inputs_nl)
        wanted_nk, scores_nkv = test_nl[:, NUMBERS + 1 :], scores_nlv[:, outputs]
        decided_nk = scores_nkv.argmax(-1)
        weights_nkl = model.attention(model.embed(inputs_nl))[:, outputs]
        return (
            float(functional.cross_entropy(scores_nkv.flatten(0, 1), wanted_nk.flatten())),
            float((decided_nk == wanted_nk).double().mean()),
            repetition(decided_nk),
            likeness_of_places(hidden_nld[:, outputs]),
            attention_progress(weights_nkl),
        )


def conclude(setup: Setup, done: Sequence[PlateauTraining], machine: Mapping[str, Any]) -> Finding:
    """Return likeness and repetition before, on and after the plateau, and when attention moved."""
    left = [each for each in done if each.left_at is not None and each.left_at > 1]
    # The first reading is of the untrained net, and no part of the plateau.
    parallel = _interval([fmean(c >= PARALLEL for c in each.likeness[1 : each.left_at]) for each in left])
    readings = {
        name: {
            "untrained": _interval([getattr(each, name)[0] for each in left]),
            "on the plateau": _interval([fmean(getattr(each, name)[1 : each.left_at]) for each in left]),
            "at the end": _interval([getattr(each, name)[-1] for each in left]),
        }
        for name in ("likeness", "repetition")
    }
    lead = _interval(
        [
            each.steps[each.left_at] - each.steps[each.moved_at]
            for each in left
            if each.left_at is not None and each.moved_at is not None
        ]
    )
    return Finding(
        name="plateau",
        setup=setup,
        machine=machine,
        ruling=_rule(parallel),
        quantities=tuple(
            Quantity(name=name, predicted=predicted, measured=interval)
            for name, predicted, interval in (
                (f"share of the plateau at a cosine of {PARALLEL:g} or more", "above 0.5", parallel),
                *(
                    (f"{NAMES[name]}, {when}", "", interval)
                    for name, each in readings.items()
                    for when, interval in each.items()
                ),
                ("steps from attention's move to the end of the plateau", "", lead),
            )
            if interval is not None
        ),
        predicted_range=(MOST, None),
        figures={
            "parallel": parallel,
            "readings": readings,
            "lead": lead,
            "left": left,
            "done": done,
        },
        trainings=tuple(done),
        panels=tuple(
            Panel(
                title=title,
                x="step",
                y=title,
                curves=tuple(
                    Curve(
                        name=f"seed {each.trial.seed}",
                        points=tuple(zip(map(float, each.steps), getattr(each, field), strict=True)),
                    )
                    for each in done
                ),
            )
            for title, field in (
                ("accuracy", "accuracy"),
                ("cosine of places", "likeness"),
                ("attention progress", "progress"),
            )
        ),
    )


def _interval(values: Sequence[float]) -> Interval | None:
    return mean_interval(values) if len(values) > 1 else None


def _rule(parallel: Interval | None) -> Ruling:
    """Return confirmed where hidden states are parallel on most of the plateau, refuted where surely not."""
    if parallel is None:
        return Ruling.UNDECIDED
    if parallel.low > MOST:
        return Ruling.CONFIRMED
    return Ruling.REFUTED if parallel.high < MOST else Ruling.UNDECIDED
