"""Study ``plateau``: what a transformer does on the plateau before it learns abruptly, and what it waits for.

The published task and model, small: sums of two neighbours modulo 17, one layer of linear attention. While it
learns, repetition of its outputs, likeness of its hidden states and progress of its attention are read. Then
it learns again with a part given: frozen at its trained values, or the attention as it should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune.signals.representations import mean_cosine
from tpsprune_studies.finding import (
    EXACT,
    Bound,
    Curve,
    Finding,
    Panel,
    Plan,
    Quantity,
    Ruling,
    by_trial,
    compare_steps,
    judge,
    rule_all,
)
from tpsprune_studies.setup import Climb, Setup, resize

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
NONE: Final = "none"
RIGHT: Final = "right attention"
MAP: Final = "attention map"
READOUT: Final = "MLP and head"
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    MAP: ("tokens", "places", "before", "q", "k"),
    "attention": ("tokens", "places", "before", "q", "k", "v", "o"),
    READOUT: ("between", "mlp", "after", "head"),
    "embeddings and head": ("tokens", "places", "after", "head"),
    "embeddings": ("tokens", "places"),
    "queries and keys": ("before", "q", "k"),
    "all but queries and keys": ("tokens", "places", "v", "o", "between", "mlp", "after", "head"),
    RIGHT: (),
}
"""What is given, by the modules that are frozen as trained; of ``RIGHT`` none is, its matrix is the mask.

The first four are those of the source's code.
"""
PART_SEEDS: Final = 3
SHORTER: Final = 0.5
"""Times the plain plateau: below it one is gone, above it one is still there."""
PREDICTED: Final = {MAP: f"below {SHORTER:g}", READOUT: f"{SHORTER:g} or more"}


@final
class LinearAttention(nn.Module):
    """One layer: causal attention without softmax, over √d, then an MLP; norms before each and at the end.

    ``forward`` returns scores and hidden states before the head; ``attention`` the matrix of the layer, which
    is ``given_ll`` where that is set.

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
        self.given_ll: Tensor | None = None
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def attention(self, stream_nld: Tensor) -> Tensor:
        """Return the weights (n, l, l) by which each place hears those up to itself."""
        if self.given_ll is not None:
            return self.given_ll.expand(len(stream_nld), -1, -1)
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
    mask_kl = heard_numbers(*weights_nkl.shape[1:])
    heard_n = (weights_nkl.abs() * mask_kl).sum((1, 2)) / weights_nkl.abs().sum((1, 2))
    return float(heard_n.mean())


def heard_numbers(places: int, length: int) -> Tensor:
    """Return a mask (k, l) of the numbers that each output place depends on.

    >>> heard_numbers(3, 4).tolist()
    [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    """
    return torch.ones(places, length).tril().triu(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauTrial:
    """A training by its seed, and the part that it is given, if any."""

    seed: int
    given: str = NONE

    @property
    def arm(self) -> str:
        """What is compared."""
        return self.given


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
    def length(self) -> Climb:
        """How many steps the plateau took, or those that were made where it was never left."""
        place = self.left_at
        steps = self.steps[-1 if place is None else place]
        # A reading at the start would be a plateau of no steps, which has no ratio.
        return Climb(steps=max(steps, READING_STEPS), reached=place is not None)

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
    """Return every seed, then the first three with each part given."""
    return Plan(
        (
            *(PlateauTrial(seed=seed) for seed in setup.pair_seeds),
            *(
                PlateauTrial(seed=seed, given=part)
                for seed in setup.pair_seeds[:PART_SEEDS]
                for part in PARTS
            ),
        )
    )


def run(setup: Setup, trial: PlateauTrial) -> PlateauTraining:
    """Train until the sums are right, and read on the way.

    With a part given weights and sequences are the plain training's, which comes first for what it trained.
    """
    torch.set_num_threads(setup.threads)
    found, _ = _train(trial, setup.cap_steps)
    return found


@lru_cache(maxsize=1)
def _train_plain(seed: int, cap_steps: int) -> Mapping[str, Tensor]:
    """Return the trained weights of a seed; kept, since all its parts follow one another."""
    _, model = _train(PlateauTrial(seed=seed), cap_steps)
    return model.state_dict()


def _train(trial: PlateauTrial, cap_steps: int) -> tuple[PlateauTraining, LinearAttention]:
    trained = _train_plain(trial.seed, cap_steps) if PARTS.get(trial.given) else {}
    torch.manual_seed(trial.seed)
    generator = torch.Generator().manual_seed(trial.seed)
    model = LinearAttention(WIDTH, 2 * NUMBERS)
    give(model, trial.given, trained)
    test_nl = draw_sums(TEST_ITEMS, generator)
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(learning, LEARNING_RATE)
    readings: list[tuple[float, ...]] = []
    for step in range(cap_steps + 1):
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
    return PlateauTraining(trial=trial, steps=tuple(int(each) for each in steps), **series), model


def give(model: LinearAttention, part: str, trained: Mapping[str, Tensor]) -> None:
    """Freeze a part of a model at its trained values, or its attention at the mask of the right numbers."""
    if part == RIGHT:
        right_ll = torch.zeros(2 * NUMBERS, 2 * NUMBERS)
        right_ll[NUMBERS:] = heard_numbers(NUMBERS, 2 * NUMBERS)
        model.given_ll = right_ll
    for name, parameter in model.named_parameters():
        if name.partition(".")[0] in PARTS.get(part, ()):
            parameter.data.copy_(trained[name])
            parameter.requires_grad_(False)


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
    """Return likeness and repetition before, on and after the plateau, when attention moved, and what for.

    What the plateau waits for is read from how long it is with a part given, over the plain training's.
    """
    plain = [each for each in done if each.trial.given == NONE]
    left = [each for each in plain if each.left_at is not None and each.left_at > 1]
    lengths = _compare_lengths(done)
    gone, stays = _rule_parts(lengths)
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
        ruling=rule_all([_rule(parallel), gone, stays]),
        quantities=tuple(
            Quantity(name=name, predicted=predicted, measured=interval, bound=bound)
            for name, predicted, interval, bound in (
                (f"share of the plateau at a cosine of {PARALLEL:g} or more", "above 0.5", parallel, EXACT),
                *(
                    (f"{NAMES[name]}, {when}", "", interval, EXACT)
                    for name, each in readings.items()
                    for when, interval in each.items()
                ),
                ("steps from attention's move to the end of the plateau", "", lead, EXACT),
                *(
                    (f"plateau with {part} given, over the plain one", PREDICTED.get(part, ""), *each)
                    for part, each in lengths.items()
                ),
            )
            if interval is not None
        ),
        predicted_range=(MOST, None),
        figures={
            "parallel": parallel,
            "readings": readings,
            "lead": lead,
            "left": left,
            "plain": plain,
            "lengths": lengths,
            "claims": {
                "nearly parallel": _rule(parallel),
                f"gone with the {MAP}": gone,
                f"still there with {READOUT}": stays,
            },
            "by_part": {part: [each for each in done if each.trial.given == part] for part in PARTS},
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
                    for each in plain
                ),
            )
            for title, field in (
                ("accuracy", "accuracy"),
                ("cosine of places", "likeness"),
                ("attention progress", "progress"),
            )
        ),
    )


def _compare_lengths(done: Sequence[PlateauTraining]) -> dict[str, tuple[Interval, Bound]]:
    """Return by part how long the plateau is with it given, over the plain one, where two seeds tell.

    Only of seeds whose plain training learned: else there are no trained values.
    """
    found = by_trial(done)
    learned = [
        each for each in done if each.trial.given == NONE and each.accuracy and each.accuracy[-1] >= LEARNED
    ]
    pairs = {
        part: [
            (found[given].length, each.length)
            for each in learned
            if (given := PlateauTrial(seed=each.trial.seed, given=part)) in found
        ]
        for part in PARTS
    }
    return {part: compare_steps(each) for part, each in pairs.items() if len(each) > 1}


def _rule_parts(lengths: Mapping[str, tuple[Interval, Bound]]) -> tuple[Ruling, Ruling]:
    """Return whether the plateau is gone with the attention map given, and there with MLP and head given."""
    if not {MAP, READOUT} <= set(lengths):
        return Ruling.UNDECIDED, Ruling.UNDECIDED
    (gone, gone_bound), (stays, stays_bound) = lengths[MAP], lengths[READOUT]
    opposite = {Ruling.CONFIRMED: Ruling.REFUTED, Ruling.REFUTED: Ruling.CONFIRMED}
    there = judge(gone.low, gone.high, SHORTER, gone_bound)
    return opposite.get(there, there), judge(stays.low, stays.high, SHORTER, stays_bound)


def _interval(values: Sequence[float]) -> Interval | None:
    return mean_interval(values) if len(values) > 1 else None


def _rule(parallel: Interval | None) -> Ruling:
    """Return confirmed where hidden states are parallel on most of the plateau, refuted where surely not."""
    if parallel is None:
        return Ruling.UNDECIDED
    if parallel.low > MOST:
        return Ruling.CONFIRMED
    return Ruling.REFUTED if parallel.high < MOST else Ruling.UNDECIDED
