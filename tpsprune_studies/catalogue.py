"""The studies there are, the prediction that each tests, and what the module of a study holds.

Light: importing it loads neither torch nor a study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

if TYPE_CHECKING:
    from tpsprune.recipe import Recipe
    from tpsprune_studies.finding import Finding, Plan, Training


KIM: Final = "Kim and Kim 2025, doi:10.5281/zenodo.18042384"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A published statement, its source, and the shipped recipe that the study runs on."""

    name: str
    statement: str
    source: str
    recipe: str = "modular-addition"


STUDIES: Final[Mapping[str, Prediction]] = {
    study.name: study
    for study in (
        Prediction(
            name="speed-up",
            statement="TPS converges 2–5× faster on structured tasks",
            source=f"{KIM} (abstract; no formula is given there)",
        ),
        Prediction(
            name="reach",
            statement="TPS converges 2–5× faster on structured tasks, whichever they are",
            source=f"{KIM} (abstract; no formula is given there)",
        ),
        Prediction(
            name="dimension",
            statement="after training with TPS the effective dimension is below a tenth of the width",
            source=f"{KIM} (abstract; what N is, it does not say)",
        ),
        Prediction(
            name="draw-time",
            statement="only a ticket drawn after generalisation, rewound to init, learns without delay",
            source="Minegishi et al. 2023, arXiv 2310.19470 (of single weights, by magnitude)",
        ),
        Prediction(
            name="lead-time",
            statement="topological indicators warn of generalisation 100–500 epochs ahead",
            source=f"{KIM} (abstract; no formula is given there)",
        ),
        Prediction(
            name="coupling",
            statement="the critical coupling goes as N^(−1/2), and the transition is continuous",
            source=f"{KIM} (abstract; no formula, nor what N counts)",
        ),
    )
}


class Settings(Protocol):
    """The settings of a study."""

    def decisive(self) -> dict[str, Any]:
        """Return, flat, every setting that a finished training depends on and its trial does not name."""


class Study(Protocol):
    """What the module of a study holds. ``TRAINING`` is the record of a finished training, a dataclass."""

    TRAINING: type[Any]

    def make_setup(
        self, recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False
    ) -> Settings:
        """Return the settings at that size, the study's own where none is given; ``full`` is the larger."""

    def plan(self, setup: Any, done: Sequence[Any]) -> Plan:
        """Return the trainings known to be needed, finished ones included, and the arms of later ones."""

    def run(self, setup: Any, trial: Any) -> Training:
        """Run one training."""

    def describe(self, setup: Any, last: Any) -> str:
        """Return in a line which training ended, and how."""

    def conclude(self, setup: Any, done: Sequence[Any], machine: Mapping[str, Any]) -> Finding:
        """Return what the trainings show, once all that ``plan`` names are done."""


def load_study(name: str) -> Study:
    """Import the module of a study."""
    return cast(Study, import_module(f"tpsprune_studies.{name.replace('-', '_')}"))
