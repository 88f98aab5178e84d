"""Loss and quality on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import ceil
from operator import add

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective, Sums
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import Tree, at
from tpsprune.training.device import Execution
from tpsprune.training.spread import is_spread

BATCH_ITEMS = 1024


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss of all items, and their quality: accuracy, or what ``Objective`` has in its place."""

    loss: float
    accuracy: float


def evaluate(
    model: nn.Module,
    inputs: Tree,
    labels: Tensor,
    *,
    prepare: Callable[[Tree], Tree],
    execution: Execution,
    objective: Objective = CROSS_ENTROPY,
    peers: AbstractPeers = ALONE,
) -> Score:
    """Score ``model`` on all items, in evaluation mode, without augmentation or label smoothing.

    Each of the ``peers`` scores its shards of the items.

    Raises:
        RecipeError: a loss of the user's own raised, or has no quality defined.
    """
    # Scores of every place of a sequence are held at once: the longer, the fewer sequences.
    at_a_time = max(1, BATCH_ITEMS // objective.places(labels))

    def score(start: int, end: int) -> Sums:
        chunk = slice(start, end)
        with execution.autocasting():
            output = call_model(model, execution.arrange(prepare(at(inputs, chunk))))
        return objective.sums(output, labels[chunk])

    most = ceil(ceil(len(labels) / peers.shards) / at_a_time)

    def score_shard(shard: int) -> Sums:
        first, last = (len(labels) * place // peers.shards for place in (shard, shard + 1))
        chunks = [score(start, min(start + at_a_time, last)) for start in range(first, last, at_a_time)]
        # All shards call the model equally often, as one that is spread needs; calls too many count for none.
        return reduce(add, chunks + [score(0, 1).scaled(0) for _ in range(len(chunks), most)])

    # The weights of a spread model are gathered in a pass, and no tensor of that mode may be in a later step.
    quiet = torch.no_grad() if is_spread(model) else torch.inference_mode()
    with quiet, evaluation_mode(model):
        total = reduce(add, map(score_shard, peers.own_shards))
        peers.sum([total.loss, total.right, total.counted])
    loss, quality = objective.figures(total, labels)
    return Score(loss=loss, accuracy=quality)
