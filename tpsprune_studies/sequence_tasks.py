"""Dyck-1 and SCAN, on which the gap was published: how they are trained, and the gap as it was read there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import nn

from tpsprune.numerics.spectra import edge, gap_23, row_spectrum
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import CustomData, CustomModel, Task
from tpsprune.signals.updates import snapshot
from tpsprune_studies.setup import at_seed

GAP: Final = "attention_gap_23"
PLACE: Final = "attention_edge_k"
GRAMMARS: Final = "tpsprune_studies.grammars"
NETS: Final = "tpsprune_studies.nets"
WEIGHT_DECAY: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceTask:
    """A published task: how it is trained, how often read, and over how many updates the gap is taken.

    With weight decay trainings are to learn it, without it they are the published controls.
    """

    language: str
    in_words: str
    factory: str
    data_args: Mapping[str, Any]
    model: str
    model_args: Mapping[str, Any]
    loss: str
    batch_items: int
    learning_rate: float
    weight_decay: float = WEIGHT_DECAY
    window: int
    reading_steps: int
    cap_steps: int
    seeds: int

    @property
    def learns(self) -> bool:
        """Whether it is to be learned."""
        return self.weight_decay > 0.0

    def make_recipe(self, base: Recipe, seed: int) -> Recipe:
        """Return the recipe of a training: data are the same for every seed, as published."""
        task = Task(
            data=CustomData(factory=f"{GRAMMARS}:{self.factory}", data_args=dict(self.data_args)),
            model=CustomModel(factory=f"{NETS}:{self.model}", model_args=dict(self.model_args)),
            loss=self.loss,
        )
        return at_seed(
            replace(base, task=task),
            seed,
            optimizer="adamw",
            batch_size=self.batch_items,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.98),
            clip_norm=1.0,
            schedule="constant",
        )


DYCK: Final = SequenceTask(
    language="Dyck-1",
    in_words="the depth after each of up to 24 brackets, 13 classes, by a causal transformer, two layers of "
    "four heads, 128 wide, on the 50 published sequences; 1,000 of the other 5,000 validate",
    factory="bracket_depths",
    data_args={"pairs": 12, "items": 50, "held_out": 5000, "validation_share": 0.2},
    model="CausalTransformer",
    model_args={
        **{"vocabulary": 3, "length": 24, "classes": 13},
        **{"width": 128, "layers": 2, "heads": 4, "mlp_width": 256},
    },
    loss="next-token",
    batch_items=50,
    learning_rate=1e-3,
    window=3,
    reading_steps=25,
    cap_steps=1500,
    seeds=3,
)


def _scan(most_actions: int, batch_items: int, learning_rate: float, width: int, layers: int) -> SequenceTask:
    """Return SCAN at a size; at the published one a training takes hours of a processor."""
    return SequenceTask(
        language="SCAN",
        in_words=f"commands of at most {most_actions} actions, translated by an encoder and a decoder of "
        f"depth {layers} with four heads, {width} wide, on 2,048 commands; 500 others validate",
        factory="scan",
        data_args={"items": 2048, "held_out": 1000, "most_actions": most_actions, "validation_share": 0.5},
        model="Translator",
        model_args={
            **{"vocabulary": 14, "classes": 9, "lengths": [9, most_actions + 1]},
            **{"width": width, "layers": layers, "heads": 4, "mlp_width": 2 * width},
        },
        loss=f"{GRAMMARS}:whole_sequences",
        batch_items=batch_items,
        learning_rate=learning_rate,
        window=5,
        reading_steps=50,
        cap_steps=1500,
        seeds=3,
    )


SCAN: Final = _scan(12, batch_items=64, learning_rate=5e-4, width=128, layers=2)
FULL_SCAN: Final = replace(
    _scan(48, batch_items=256, learning_rate=1e-4, width=256, layers=3),
    reading_steps=100,
    cap_steps=5000,
    seeds=3,
)


def _with_controls(arms: Mapping[str, SequenceTask]) -> dict[str, SequenceTask]:
    controls = {f"{arm}, no decay": replace(task, weight_decay=0.0) for arm, task in arms.items()}
    return {name: each for pair in zip(arms.items(), controls.items(), strict=True) for name, each in pair}


TASKS: Final = _with_controls({"Dyck-1": DYCK, "SCAN": SCAN})
FULL_TASKS: Final = _with_controls({"Dyck-1": DYCK, "SCAN, published size": FULL_SCAN})


@final
class AttentionGap:
    """The gap σ₂² − σ₃² and the edge k* of the last ``window`` updates of the matrices of attention.

    An update is the difference of two readings, the first of them when this is made. k* is the j < ``window``
    with the largest σ_j / σ_{j+1}, over all j, as published; the signal ``spectral_edge`` looks at the first
    half of its window only.

    Source: Xu 2026 (arXiv:2603.28964), definition 3.1, and its code.
    """

    def __init__(self, model: nn.Module, window: int, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._snapshots = deque((snapshot(model, seed, "attention"),), maxlen=window + 1)

    def read(self) -> Iterator[tuple[str, float]]:
        """Take a snapshot; yield gap and place by their names once there are so many updates."""
        self._snapshots.append(snapshot(self._model, self._seed, "attention"))
        if len(self._snapshots) == self._snapshots.maxlen:
            sigma_w = row_spectrum(torch.stack(list(self._snapshots)).diff(dim=0))
            yield GAP, float(gap_23(sigma_w))
            yield PLACE, float(edge(sigma_w, len(sigma_w) - 1).k)
