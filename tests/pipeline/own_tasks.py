"""Tasks of somebody's own, as recipes of the tests name them by dotted path: data, models and losses."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TASK = """
name = "other"
[task]
loss = "{loss}"
[task.data]
{data}
[task.model]
{model}
[train]
epochs = 12
batch_size = 40
learning_rate = 2e-2
threads = 1
checkpoint_seconds = 0
[watch]
every_epochs = 1
calibration_items = 64
h1_points = 16
edge_window = 4
[stop.draw]
rule = "epoch"
epoch = 8.0
[prune]
calibration_items = 128
[energy]
meter = "fake"
"""
ITEMS = {"train": 240, "validation": 60, "test": 60}


@dataclass
class Answer:
    """As some libraries return it: scores among other things, of which some are not there."""

    hidden: Tensor
    logits: Tensor
    loss: Tensor | None = None


class Opened(OrderedDict[str, Any]):
    """As Hugging Face's outputs are: a mapping whose parts are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def _drawn(name: str, items: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(len(name) + items)
    ids = torch.randint(1, 20, (items, 5), generator=generator)
    mask = (torch.arange(5) < torch.randint(2, 6, (items, 1), generator=generator)).long()
    numbers = torch.randn(items, 6, generator=generator)
    high = ((ids * mask).sum(1) / mask.sum(1) > 10).long()
    return {"ids": ids, "numbers": numbers, "mask": mask}, high + 2 * (numbers[:, 0] > 0)


def by_name() -> dict[str, Any]:
    """Return words, numbers and a mask, which go in by name, and four classes."""
    return {name: _drawn(name, items) for name, items in ITEMS.items()}


def by_place() -> dict[str, Any]:
    """Return the same as a tuple, which goes in by position."""
    return {name: (tuple(inputs.values()), labels) for name, (inputs, labels) in by_name().items()}


def many_labels() -> dict[str, Any]:
    """Return vectors of six, each with the signs of its first three for labels."""
    splits = {name: inputs["numbers"] for name, (inputs, _) in by_name().items()}
    return {name: (each, (each[:, :3] > 0).float()) for name, each in splits.items()}


def targets(count: int = 1) -> dict[str, Any]:
    """Return vectors of six and sums of squares of them to estimate, ``count`` for each, or (n,) for one."""
    splits = {name: inputs["numbers"] for name, (inputs, _) in by_name().items()}
    weights = torch.arange(1.0, 6.0 * count + 1).reshape(6, count)
    made = {name: each.square() @ weights / 10 for name, each in splits.items()}
    return {name: (splits[name], each if count > 1 else each[:, 0]) for name, each in made.items()}


def classes() -> dict[str, Any]:
    """Return vectors of six in three classes."""
    splits = {name: inputs["numbers"] for name, (inputs, _) in by_name().items()}
    return {name: (each, each[:, :3].argmax(1)) for name, each in splits.items()}


class Mixed(nn.Module):
    """Words under a mask and numbers beside them, through one hidden layer."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.output = output
        self.embedding = nn.Embedding(20, 16)
        self.words = nn.Linear(16, 24)
        self.numbers = nn.Linear(6, 24)
        self.hidden = nn.Linear(48, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, ids: Tensor, numbers: Tensor, mask: Tensor) -> Any:
        weight = mask[..., None].float()
        mean = (self.embedding(ids) * weight).sum(1) / weight.sum(1)
        both = torch.cat((functional.relu(self.words(mean)), functional.relu(self.numbers(numbers))), dim=1)
        hidden = functional.relu(self.hidden(both))
        logits = self.head(hidden)
        match self.output:
            case "dataclass":
                return Answer(hidden=hidden, logits=logits)
            case "mapping":
                return {"hidden": hidden, "logits": logits}
            case "opened":
                return Opened(logits=logits, hidden=hidden)
            case "tuple":
                return logits, hidden
            case _:
                return logits


def mixed(output: str = "tensor") -> nn.Module:
    """Return the model with the output of that kind."""
    return Mixed(output)


class NextByte(nn.Module):
    """A causal net of two convolutions over bytes."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 16)
        self.first = nn.Conv1d(16, width, 3)
        self.dropout = nn.Dropout(0.1)
        self.second = nn.Conv1d(width, width, 3)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = functional.pad(self.embedding(tokens).transpose(1, 2), (4, 0))
        hidden = functional.relu(self.second(self.dropout(functional.relu(self.first(seen)))))
        scores: Tensor = self.head(hidden.transpose(1, 2))
        return scores


def next_byte(width: int = 24, vocabulary: int = 256) -> nn.Module:
    """Return the net."""
    return NextByte(width, vocabulary)


def absolute(output: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the mean absolute error, and the share of predictions that are within one."""
    gap = (output.squeeze(1) - labels).abs()
    return {"loss": gap.mean(), "quality": (gap < 1).float().mean()}


def hinge(output: Tensor, labels: Tensor) -> Tensor:
    """Return the multi-class hinge loss alone."""
    return functional.multi_margin_loss(output, labels)


def text_recipe(folder: Path) -> str:
    """Write the beginning of a text and return a recipe of it."""
    book = folder / "book.txt"
    book.write_text("".join(topics[name] for name in sorted(topics))[:20_000])
    data = f'kind = "text"\npath = "{book}"\nlength = 32'
    return TASK.format(
        loss="next-token", data=data, model=f'kind = "custom"\nfactory = "{__name__}:next_byte"'
    )
