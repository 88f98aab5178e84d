"""Fully connected networks with ReLU, for vectors, for images, and for tokens.

Shapes: n items, i pairs, l tokens of an item, a first token, b second token, m units, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from torch import Tensor, nn

from tpsprune.errors import ModelError

__all__ = ["Mlp", "TokenMlp"]


@final
class Mlp(nn.Module):
    """Inputs flattened, a linear layer with ReLU per width, a linear head.

    Parameters: Σ (wᵢ₋₁ + 1) · wᵢ over all layers, head included.
    """

    def __init__(self, features: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.hidden = _hidden_layers(features, widths)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return scores (n, c) of inputs (n, …)."""
        scores: Tensor = self.head(self.hidden(inputs.flatten(1)))
        return scores


@final
class TokenMlp(nn.Module):
    """Tokens through one shared embedding, side by side through layers with ReLU and a linear head.

    Parameters: vocabulary · embedding, and those of ``Mlp`` with length · embedding features. The
    embedding is normal with standard deviation embedding^(−1/2), rows of length one: with torch's rows,
    √embedding times as long, modular addition is memorised for longer before it is understood.
    """

    def __init__(
        self, vocabulary: int, length: int, embedding: int, widths: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(vocabulary, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        self.hidden = _hidden_layers(length * embedding, widths)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, tokens_nl: Tensor) -> Tensor:
        """Return scores (n, c) of token ids (n, length)."""
        scores: Tensor = self.head(self.hidden(self.embedding(tokens_nl).flatten(1)))
        return scores

    @property
    def has_unit_triplets(self) -> bool:
        """Whether ``unit_triplets`` is defined: two tokens, and one hidden layer between them and classes.

        With more layers the way from a first-layer unit to a class depends on the other units.
        """
        return self.length == 2 and len(self.hidden) == 2

    def unit_triplets(self, tokens_i2: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """Return u (a, m), v (b, m) and o (m, c): what tokens add to each unit, and it to each class.

        The pre-activation of unit m on the pair (a, b) is u[a, m] + v[b, m] + bias[m], exactly;
        o[m, c] is its outgoing weight to class c. All are differentiable and none is centred. They follow
        from the weights alone; ``tokens_i2`` is for models that must be run to know them.

        Raises:
            ModelError: ``has_unit_triplets`` does not hold.
        """
        if not self.has_unit_triplets:
            raise ModelError(
                f"task.model: unit triplets of an 'mlp' with {len(self.hidden) // 2} hidden layers on "
                f"{self.length} tokens are not defined; one hidden layer on two tokens would do"
            )
        weight_first, weight_second = self.hidden[0].get_parameter("weight").chunk(2, dim=1)
        table = self.embedding.weight
        return table @ weight_first.T, table @ weight_second.T, self.head.weight.T


def _hidden_layers(features: int, widths: Sequence[int]) -> nn.Sequential:
    layers = nn.Sequential()
    for width_in, width_out in pairwise((features, *widths)):
        layers.append(nn.Linear(width_in, width_out))
        layers.append(nn.ReLU())
    return layers
