"""Study ``condensation``: whether a net from small weights condenses to its teacher's width, and is cut so.

A teacher of a few units makes the data, a student of many learns them from fewer items than it has numbers. A
cut to a tolerance then says how many units are needed; a linear model of random features says what is gained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

import tpsprune
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune.signals.weights import condensed_share
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Setup, resize

TEACHER_UNITS: Final = 3
STUDENT_UNITS: Final = 60
FEATURES: Final = 6
ITEMS: Final = 200
TEST_ITEMS: Final = 2000
STEPS: Final = 6000
LEARNING_RATE: Final = 3e-3
SCALES: Final = (0.01, 0.1, 1.0)
SMALL, LARGE = SCALES[0], SCALES[-1]
FEATURES_ONLY: Final = "random features"
TOLERANCES: Final = (1e-2, 1e-3, 1e-5)
JUDGED: Final = "0.001"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentTrial:
    """A student: the scale of its initial weights (none for random features), and the seed of all."""

    scale: float | None
    seed: int

    @property
    def arm(self) -> str:
        """What is compared."""
        return FEATURES_ONLY if self.scale is None else f"initial weights × {self.scale:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentTraining:
    """A student after training: test error over the variance, condensed share, units left by tolerance."""

    trial: StudentTrial
    error_share: float
    condensed: float
    widths: Mapping[str, int]
    cut_error_shares: Mapping[str, float]
    seconds: float = 0.0


TRAINING: Final = StudentTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=6, cap_steps=STEPS), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[StudentTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every student on every seed."""
    return Plan(
        tuple(StudentTrial(scale=scale, seed=seed) for seed in setup.pair_seeds for scale in (*SCALES, None))
    )


def run(setup: Setup, trial: StudentTrial) -> StudentTraining:
    """Train a student, and cut it to each tolerance."""
    torch.set_num_threads(setup.threads)
    torch.manual_seed(trial.seed)
    teacher = _net(TEACHER_UNITS)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_()
    inputs_nd, test_nd = torch.randn(ITEMS, FEATURES), torch.randn(TEST_ITEMS, FEATURES)
    with torch.no_grad():
        wanted_n1, test_n1 = teacher(inputs_nd), teacher(test_nd)
    student = _net(STUDENT_UNITS)
    if trial.scale is None:
        _fit_readout(student, inputs_nd, wanted_n1)
    else:
        _train(student, trial.scale, inputs_nd, wanted_n1, setup.cap_steps)
    hidden = student[0]
    assert isinstance(hidden, nn.Linear)
    tickets = {
        f"{tolerance:g}": tpsprune.extract(
            student, [inputs_nd], tpsprune.Tolerance(tolerance), quality="fast", round_to=1
        ).ticket
        for tolerance in TOLERANCES
    }
    return StudentTraining(
        trial=trial,
        error_share=_error_share(student, test_nd, test_n1),
        condensed=condensed_share(torch.cat([hidden.weight, hidden.bias[:, None]], 1).detach()),
        widths={name: len(ticket.get_parameter("0.weight")) for name, ticket in tickets.items()},
        cut_error_shares={name: _error_share(each, test_nd, test_n1) for name, each in tickets.items()},
    )


def _net(units: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, units), nn.Tanh(), nn.Linear(units, 1, bias=False))


def _train(student: nn.Sequential, scale: float, inputs_nd: Tensor, wanted_n1: Tensor, steps: int) -> None:
    """Train on all items at once; the first tenth of the steps warms up, the rest is half a cosine."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(scale)
    optimizer = torch.optim.Adam(student.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(student(inputs_nd), wanted_n1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _fit_readout(student: nn.Sequential, inputs_nd: Tensor, wanted_n1: Tensor) -> None:
    """Fit the last layer to features as they were drawn: a linear model of as many numbers as units."""
    with torch.no_grad():
        features_nm = student[:2](inputs_nd)
        readout_m1 = torch.linalg.lstsq(features_nm.double(), wanted_n1.double()).solution
        student[2].get_parameter("weight").copy_(readout_m1.T)


def _error_share(model: nn.Module, inputs_nd: Tensor, wanted_n1: Tensor) -> float:
    with torch.no_grad():
        left = (model(inputs_nd) - wanted_n1).square().mean()
    return float(left / wanted_n1.var())


def conclude(setup: Setup, done: Sequence[StudentTraining], machine: Mapping[str, Any]) -> Finding:
    """Return widths by initial scale; the ruling is on those from small weights, paired with large ones."""
    by_arm = {
        trial.arm: [each for each in done if each.trial.arm == trial.arm]
        for trial in (StudentTrial(scale=scale, seed=0) for scale in (*SCALES, None))
    }
    small, large = (by_arm[StudentTrial(scale=scale, seed=0).arm] for scale in (SMALL, LARGE))
    pairs = zip(_in_order(small), _in_order(large), strict=True)
    fewer = mean_interval(second.widths[JUDGED] - first.widths[JUDGED] for first, second in pairs)
    widths = {
        name: mean_interval(each.widths[JUDGED] for each in trainings) for name, trainings in by_arm.items()
    }
    return Finding(
        name="condensation",
        setup=setup,
        machine=machine,
        ruling=_rule(widths[small[0].trial.arm], fewer),
        quantities=tuple(
            Quantity(
                name=name,
                predicted=f"{TEACHER_UNITS}" if name == small[0].trial.arm else "",
                measured=width,
            )
            for name, width in widths.items()
        ),
        predicted_range=(float(TEACHER_UNITS), 2.0 * TEACHER_UNITS),
        figures={"by_arm": by_arm, "widths": widths, "fewer": fewer, "mean_of": _mean_of},
        trainings=tuple(done),
    )


def _in_order(trainings: Sequence[StudentTraining]) -> list[StudentTraining]:
    return sorted(trainings, key=lambda each: each.trial.seed)


def _mean_of(trainings: Sequence[StudentTraining], name: str) -> float:
    return fmean(getattr(each, name) for each in trainings)


def _rule(width: Interval, fewer: Interval) -> Ruling:
    """Return confirmed where small weights need fewer units than large, and at most twice the teacher's."""
    if fewer.low > 0 and width.high <= 2 * TEACHER_UNITS:
        return Ruling.CONFIRMED
    return Ruling.REFUTED if fewer.high <= 0 or width.low > 2 * TEACHER_UNITS else Ruling.UNDECIDED
