"""Inputs made up from the facts of a task: what a model can be tried on where its data are not."""

from __future__ import annotations

import torch
from torch import Tensor

from tpsprune.numerics.trees import Tree
from tpsprune.records import InputPart, TaskFacts

__all__ = ["random_inputs"]


def random_inputs(facts: TaskFacts, items: int, seed: int = 0) -> Tree:
    """Return so many items as a model of the task takes them, on the CPU; equal seeds, equal items.

    Images, vectors and other floats are standard normal, token ids and other whole numbers uniform over
    those there are. Of a part of two values only, as a mask has them, the first place holds the higher: a
    mask that lets nothing through is none. Several parts come as a mapping, or without names as a tuple.

    Does not see what data look like: answers to these items are good for comparing models, not for judging
    them.
    """
    generator = torch.Generator().manual_seed(seed)
    if facts.parts:
        drawn = [_part(part, items, generator) for part in facts.parts]
        if any(part.name for part in facts.parts):
            return {part.name: each for part, each in zip(facts.parts, drawn, strict=True)}
        return tuple(drawn)
    shape = (items, *facts.input_shape)
    if facts.input_kind == "tokens":
        return torch.randint(facts.vocabulary or 1, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _part(part: InputPart, items: int, generator: torch.Generator) -> Tensor:
    shape = (items, *part.shape)
    if part.dtype == "float32":
        return torch.randn(shape, generator=generator)
    drawn = torch.randint(part.lowest, part.highest + 1, shape, generator=generator)
    if part.highest - part.lowest == 1 and drawn.ndim > 1:
        drawn[..., 0] = part.highest
    return drawn.bool() if part.dtype == "bool" else drawn
