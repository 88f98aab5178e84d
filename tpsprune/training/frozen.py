"""A frozen model but for its last linear layer: what that layer reads, computed once, and its training.

Shape letters: n items, f features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from tpsprune.errors import ModelError
from tpsprune.numerics.forward import logits_of
from tpsprune.numerics.last_layer import passes
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.trees import Tree, at
from tpsprune.recipe.train import Train
from tpsprune.training.device import Execution
from tpsprune.training.evaluate import BATCH_ITEMS
from tpsprune.training.loop import Tick, count_steps, fit, steps_per_epoch
from tpsprune.training.optimizers import make_optimizer


@final
class _AsItIs:
    """Features need no preparation and are not augmented."""

    def __call__(self, inputs: Tree, draws: Tensor | None = None, /) -> Tree:  # noqa: ARG002 -- the protocol's
        return inputs

    def draw(self, inputs: Tree, generator: torch.Generator, /) -> Tensor | None:  # noqa: ARG002
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A model's last linear layer, whose outputs are the model's scores, and the layer's name."""

    name: str
    layer: nn.Linear

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(each.numel() for each in self.layer.parameters())


def find_head(model: nn.Module, batch: Tree) -> Head:
    """Return the linear layer that makes a model's scores of a prepared batch, by a pass in evaluation mode.

    Raises:
        ModelError: no linear layer comes last: there is none, or something follows it; or the rest of the
            model has its weight too, so that it cannot train alone.
    """
    (found,) = passes(model, [batch])
    place = f"task.model: {type(model).__name__}"
    if found.layer is None or found.read is None:
        raise ModelError(f"{place} has no linear layer that comes last, and nothing else could be made new")
    if found.layer is model:
        raise ModelError(f"{place} is a linear layer alone: there is no encoder before it")
    name = next(name for name, module in model.named_modules() if module is found.layer)
    with torch.no_grad():
        scores = found.layer(found.read)
    output = logits_of(found.output)
    if scores.shape != output.shape or not torch.allclose(scores, output, rtol=1e-4, atol=1e-5):
        raise ModelError(
            f"{place}: no linear layer comes last: '{name}' is called last, and its outputs, "
            f"{list(scores.shape)}, are not the model's, {list(output.shape)}; return them as they are"
        )
    own = {id(each) for each in found.layer.parameters()}
    for other, each in model.named_parameters(remove_duplicate=False):
        if id(each) in own and not other.startswith(f"{name}."):
            raise ModelError(f"{place}: its last linear layer '{name}' shares a weight with '{other}'")
    return Head(name, found.layer)


def features_of(
    model: nn.Module,
    inputs: Tree,
    items: int,
    *,
    prepare: Callable[[Tree], Tree],
    execution: Execution,
) -> Tensor:
    """Return what a model's head reads (n, f), in evaluation mode, without augmentation or gradients.

    Cost: a forward pass of all items, and n f numbers in memory.
    """
    chunks = (slice(start, start + BATCH_ITEMS) for start in range(0, items, BATCH_ITEMS))
    batches = (execution.arrange(prepare(at(inputs, chunk))) for chunk in chunks)
    with execution.autocasting():
        found = [(each.layer, each.read) for each in passes(model, batches)]
    return torch.cat(
        [read.to(layer.weight.dtype) for layer, read in found if layer is not None and read is not None]
    )


def fit_head(
    head: Head,
    features_nf: Tensor,
    labels_n: Tensor,
    *,
    settings: Train,
    execution: Execution,
    seed: int,
    objective: Objective = CROSS_ENTROPY,
) -> Iterator[Tick]:
    """Train a head in place on features, by a recipe's schedule, batches, optimiser and loss; yield steps.

    The same batches, and where nothing is augmented or dropped the same steps, as training the whole model
    in evaluation mode with all but the head frozen.

    Raises:
        DivergedError: the loss is not finite.
    """
    settings = replace(settings, compile=False)
    total = count_steps(settings.epochs, steps_per_epoch(len(labels_n), settings))
    yield from fit(
        head.layer,
        make_optimizer(head.layer, settings),
        features_nf,
        labels_n,
        prepare=_AsItIs(),
        settings=settings,
        execution=replace(execution, channels_last=False, compiles=False),
        seed=seed,
        first_step=0,
        last_step=total,
        total_steps=total,
        objective=objective,
    )
