"""What a study is run with, and which of it a training depends on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch

from tpsprune.recipe import Recipe

__all__ = ["Setup", "machine_kind", "sized"]

FULL_SEEDS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A study's size and its fixed rules.

    Pairs have the ``seeds`` seeds that follow ``pilot_seed``, on which alone each arm's weight decay is
    chosen among ``weight_decays``. A training ends at the first reading of validation accuracy at ``level``
    or above, read every ``reading_steps`` optimiser steps, or after ``cap_steps``.
    """

    recipe: Recipe
    seeds: int = 4
    cap_steps: int = 5000
    level: float = 0.95
    reading_steps: int = 25
    weight_decays: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    pilot_seed: int = 0
    threads: int = 1

    @property
    def pair_seeds(self) -> range:
        """The seeds of the comparison."""
        return range(self.pilot_seed + 1, self.pilot_seed + 1 + self.seeds)

    def decisive(self) -> dict[str, Any]:
        """Return, flat, every setting that a finished training depends on; the number of seeds is not one.

        Trainings with equal settings may stand in one journal. What trials vary among themselves (seed, arm,
        weight decay) is left to them.
        """
        train, tps, task = asdict(self.recipe.train), asdict(self.recipe.tps), asdict(self.recipe.task)
        for section, name in ((train, "weight_decay"), (train, "threads"), (tps, "variant")):
            del section[name]
        for idle in ("epochs", "checkpoint_seconds"):
            del train[idle]
        task["data"].pop("split_seed", None)
        return {
            "cap_steps": self.cap_steps,
            "level": self.level,
            "reading_steps": self.reading_steps,
            "weight_decays": list(self.weight_decays),
            "pilot_seed": self.pilot_seed,
            "threads": self.threads,
            **{f"task.data.{key}": _plain(value) for key, value in task["data"].items()},
            **{f"task.model.{key}": _plain(value) for key, value in task["model"].items()},
            **{f"train.{key}": _plain(value) for key, value in train.items()},
            **{f"tps.{key}": _plain(value) for key, value in tps.items()},
        }


def sized(setup: Setup, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the setup at the size asked for; ``full`` is ten seeds, where no number is given."""
    if full:
        setup = replace(setup, seeds=FULL_SEEDS)
    return replace(setup, seeds=seeds or setup.seeds, cap_steps=cap_steps or setup.cap_steps)


def machine_kind() -> dict[str, Any]:
    """Return what of this machine decides a processor second's worth; no names, no places."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
