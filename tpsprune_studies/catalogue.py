"""The studies there are, the prediction that each tests, and what the module of a study holds.

Light: importing it loads neither torch nor a study.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, runtime_checkable

if TYPE_CHECKING:
    from tpsprune.recipe import Recipe
    from tpsprune_studies.finding import Finding, Plan, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A published statement, its source, and the shipped recipe that the study runs on."""

    name: str
    statement: str
    source: str
    recipe: str = "modular-addition"


_READ: Final = tomllib.loads(Path(__file__).with_name("studies.toml").read_text(encoding="utf-8"))
JOURNALS: Final[Mapping[str, str]] = {name: each.pop("journal", name) for name, each in _READ.items()}
"""Whose journal a study reads and goes on writing: its own, or that of one with the same trainings."""
STUDIES: Final[Mapping[str, Prediction]] = {
    name: Prediction(name=name, **published) for name, published in _READ.items()
}


class Settings(Protocol):
    """The settings of a study."""

    def decisive(self) -> dict[str, Any]:
        """Return, flat, every setting that a finished training depends on and its trial does not name."""

    def describe(self) -> dict[str, Any]:
        """Return the settings that a finding names: the seeds, and what is decisive."""

    def command(self, name: str) -> str:
        """Return the command that runs the study at this size."""


@runtime_checkable
class TakesImages(Settings, Protocol):
    """The settings of a study that can be given images."""

    def with_images(self, images: Path) -> Settings:
        """Return the settings with a folder or zip of images."""


@runtime_checkable
class Study(Protocol):
    """What the module of a study holds; its words are in ``templates/NAME.md.j2``.

    ``TRAINING`` is the record of a finished training, a dataclass.
    """

    TRAINING: type[Any]

    def make_setup(
        self, recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False
    ) -> Settings:
        """Return the settings at that size, the study's own where none is given; ``full`` is the larger."""

    def plan(self, setup: Any, done: Sequence[Any]) -> Plan:
        """Return the trainings known to be needed, finished ones included, and the arms of later ones."""

    def run(self, setup: Any, trial: Any) -> Training:
        """Run one training."""

    def conclude(self, setup: Any, done: Sequence[Any], machine: Mapping[str, Any]) -> Finding:
        """Return what the trainings show, once all that ``plan`` names are done."""


def load_study(name: str) -> Study:
    """Import the module of a study."""
    return cast(Study, import_module(f"tpsprune_studies.{name.replace('-', '_')}"))
