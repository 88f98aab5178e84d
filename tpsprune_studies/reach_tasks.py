"""Tasks of the study ``reach``: further operations, fewer examples, other nets, other and ordinary tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from tpsprune import recipe
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import IdxData
from tpsprune_studies.tuned_comparison import Arm, Experiment, Variant

Kind = Literal["structured", "ordinary", "control"]
GENTLE_RATES: Final = (0.003, 0.01, 0.001)
CONSTANT_RATE: Final = ("train.schedule='constant'", "train.warmup_share=0.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachTask:
    """A task: a shipped recipe with changes, what counts as learned, and which variants fit."""

    name: str
    kind: Kind = "structured"
    base: str = "modular-addition"
    changes: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ("labels", "moments")
    degree: Literal[2, 3] = 2
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.01)
    level: float = 0.95
    cap_steps: int = 1500
    reading_steps: int = 5

    @property
    def recipe(self) -> Recipe:
        """The recipe with its changes, learning rates constant."""
        return recipe.read(self.base, (*CONSTANT_RATE, *self.changes))


def _data(factory: str, arguments: str = "") -> str:
    source = f"factory='tpsprune_studies.tasks:{factory}', data_args={{{arguments}}}"
    return f"task.data={{kind='custom', {source}}}"


TRANSFORMER: Final = "task.model={kind='transformer', width=64, heads=4, mlp_width=256}"
TWO_LAYERS: Final = TRANSFORMER.replace("}", ", layers=2}")
_gentle = partial(ReachTask, learning_rates=GENTLE_RATES)
_ordinary = partial(_gentle, kind="ordinary", variants=("moments", "weights", "neurons"))

STRUCTURED: Final[tuple[ReachTask, ...]] = (
    ReachTask(name="subtraction", changes=("task.data.operation='subtract'",)),
    ReachTask(name="multiplication", changes=("task.data.operation='multiply'",)),
    ReachTask(name="a² + b²", changes=("task.data.operation='a2+b2'",)),
    ReachTask(name="addition, 35 % of the table", changes=("task.data.train_share=0.35",)),
    ReachTask(name="addition, 25 % of the table", changes=("task.data.train_share=0.25",)),
    ReachTask(name="addition mod 97", changes=("task.data.modulus=97",)),
    ReachTask(name="addition, 64 units", changes=("task.model.widths=[64]",)),
    ReachTask(name="addition, 1,024 units", changes=("task.model.widths=[1024]",)),
    ReachTask(
        name="addition, two hidden layers", changes=("task.model.widths=[256,256]",), variants=("moments",)
    ),
    ReachTask(name="addition, gated units", changes=("task.model.gated=true",)),
    _gentle(name="addition, transformer", changes=(TRANSFORMER,), cap_steps=800),
    _gentle(
        name="addition mod 31, two-layer transformer",
        changes=("task.data.modulus=31", "task.data.train_share=0.6", TWO_LAYERS),
        cap_steps=800,
    ),
    ReachTask(
        name="composition in S₅",
        changes=(
            _data("permutations", "degree=5, train_share=0.5"),
            "task.model.widths=[512]",
            "train.batch_size=1440",
        ),
        cap_steps=800,
    ),
    ReachTask(
        name="parity of 2 of 40 bits, 300 items",
        changes=(_data("parity", "bits=40, support=2, items=300"),),
        variants=("moments",),
    ),
    ReachTask(
        name="parity of 3 of 40 bits, 1,000 items",
        changes=(_data("parity", "bits=40, support=3, items=1000"),),
        variants=("moments",),
        degree=3,
    ),
    _gentle(
        name="depth of 16 brackets, two-layer transformer",
        changes=(_data("brackets", "length=16, items=100, held_out=1000"), TWO_LAYERS),
        variants=("moments",),
        cap_steps=400,
    ),
)
ORDINARY: Final[tuple[ReachTask, ...]] = (
    _ordinary(name="digits, CNN", base="digits", level=0.98, cap_steps=400),
    _ordinary(
        name="Fashion-MNIST, MLP",
        base="fashion-mnist",
        changes=(
            "task.data.train_limit=10000",
            "task.data.validation_share=0.1",
            "task.model={kind='mlp', widths=[256]}",
        ),
        level=0.85,
        cap_steps=600,
        reading_steps=10,
    ),
    _ordinary(
        name="next character of English text",
        changes=(_data("windows"), "train.batch_size=512"),
        level=0.48,
        cap_steps=400,
    ),
)
CONTROLS: Final[tuple[ReachTask, ...]] = tuple(
    ReachTask(
        name=f"{words} (no one learns it)",
        kind="control",
        changes=(f"task.data.operation='{operation}'",),
        cap_steps=400,
        learning_rates=(0.1,),
    )
    for operation, words in (("a2+ab+b2", "a² + ab + b²"), ("a3+ab", "a³ + ab"))
)
COUPLINGS: Final = (10.0, 1.0, 0.1)
GENTLE: Final = (0.3, 0.1, 0.03)
"""λ of the group-wide variants, which stop learning where the others thrive."""


def make_experiments(*, full: bool) -> Iterator[tuple[ReachTask, Experiment]]:
    """Yield every task with its arms; ``full`` has Grokfast among them, and finer grids.

    Tasks of which the data are not on this machine are left out: see ``list_missing``. A control's arms have
    one setting each, what is best on addition.
    """
    for task in (*STRUCTURED, *ORDINARY, *CONTROLS):
        if task.name not in list_missing():
            yield (
                task,
                Experiment(
                    task=task.name,
                    recipe=task.recipe,
                    arms=tuple(_arms(task, full=full)),
                    level=task.level,
                    cap_steps=task.cap_steps,
                    reading_steps=task.reading_steps,
                ),
            )


def list_missing() -> tuple[str, ...]:
    """Return the tasks whose data are not on this machine."""
    return tuple(
        task.name
        for task in ORDINARY
        if isinstance(data := task.recipe.task.data, IdxData) and not Path(data.folder).is_dir()
    )


def _arms(task: ReachTask, *, full: bool) -> Iterator[Arm]:
    rates: tuple[float, ...] = task.learning_rates
    decays: tuple[float, ...] = (0.1, 1.0) if task.kind == "ordinary" else (2.0, 0.5)
    more: tuple[float, ...] = (*decays, 0.01 if task.kind == "ordinary" else 4.0)
    if task.kind == "control":
        rates, decays, more = rates[:1], decays[:1], decays[:1]
    elif full:
        rates, decays, more = (*rates, rates[-1] / 3), more, (*more, 8.0)
    yield Arm(name="none", learning_rates=rates, weight_decays=more)
    if full:
        yield Arm(
            name="grokfast",
            grokfast=True,
            learning_rates=rates,
            weight_decays=more,
            strengths=(0.5, 0.1, 2.0),
        )
    for variant in task.variants:
        strengths = COUPLINGS if variant in {"labels", "moments", "fourier"} else GENTLE
        yield Arm(
            name=variant,
            variant=variant,
            degree=task.degree,
            learning_rates=rates,
            weight_decays=decays,
            strengths=strengths[:1] if task.kind == "control" else strengths,
        )
