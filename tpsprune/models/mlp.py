"""Fully connected networks with ReLU or gated units, for vectors, for images, and for tokens.

Shapes: n items, i pairs, l tokens of an item, f features, a first token, b second token, m units, t triplets,
c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.errors import ModelError

__all__ = ["Gated", "Mlp", "TokenMlp"]


@final
class Gated(nn.Module):
    """A layer of gated linear units: h = relu(G x + g) ⊙ (U x + d).

    Each unit multiplies two linear readings of its input, so that a product need not be built out of bends.
    Unit m is row m of both matrices: they are cut together. Parameters: 2 · (features + 1) · width.

    Source: Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202), ReGLU, here with biases.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(features, width)
        self.up = nn.Linear(features, width)

    def forward(self, inputs_nf: Tensor) -> Tensor:
        """Return what the units (n, m) put out."""
        units_nm: Tensor = functional.relu(self.gate(inputs_nf)) * self.up(inputs_nf)
        return units_nm


@final
class Mlp(nn.Module):
    """Inputs flattened, a linear layer with ReLU (or, ``gated``, of gated units) per width, a linear head.

    Parameters: Σ (wᵢ₋₁ + 1) · wᵢ over all layers, head included; gated layers count twice.
    """

    def __init__(self, features: int, widths: Sequence[int], classes: int, *, gated: bool = False) -> None:
        super().__init__()
        self.hidden = _hidden_layers(features, widths, gated=gated)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return scores (n, c) of inputs (n, …)."""
        scores: Tensor = self.head(self.hidden(inputs.flatten(1)))
        return scores

    @property
    def unit_layers(self) -> tuple[str, ...]:
        """The layer that TPS variant ``moments`` couples: the first, of gated units both halves."""
        return _first_units(self.hidden)


@final
class TokenMlp(nn.Module):
    """Tokens through one shared embedding, side by side through the layers of an ``Mlp`` and a linear head.

    Parameters: vocabulary · embedding, and those of ``Mlp`` with length · embedding features. The
    embedding is normal with standard deviation embedding^(−1/2), rows of length one: with torch's rows,
    √embedding times as long, modular addition is memorised for longer before it is understood.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        embedding: int,
        widths: Sequence[int],
        classes: int,
        *,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.length = length
        self.layers = len(widths)
        self.embedding = nn.Embedding(vocabulary, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        self.hidden = _hidden_layers(length * embedding, widths, gated=gated)
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
        return self.length == 2 and self.layers == 1

    @property
    def triplets_from_weights(self) -> bool:
        """Whether triplets are all that joins two tokens, so that TPS has something to give: always."""
        return True

    def unit_triplets(self, tokens_i2: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """Return u (a, t), v (b, t) and o (t, c): what tokens add to each unit, and it to each class.

        With ReLU a triplet is a unit: the pre-activation of unit m on the pair (a, b) is
        u[a, m] + v[b, m] + bias[m], exactly, and o[m, c] is its outgoing weight to class c.

        Gated units have two triplets each, all of the first kind before all of the second. With
        G[a] + G'[b] the pre-activation of a unit's gate and U[a] + U'[b] that of its other half, up to
        biases, their product holds G[a] · U'[b] and U[a] · G'[b], of which ReLU passes half: the triplets
        are (G, U', o) and (U, G', o), o the unit's outgoing weights. What the gate reads off one token
        alone, G[a] · U[a], is in neither.

        All are differentiable and none is centred. They follow from the weights alone; ``tokens_i2`` is
        for models that must be run to know them.

        Raises:
            ModelError: ``has_unit_triplets`` does not hold.
        """
        if not self.has_unit_triplets:
            raise ModelError(
                f"task.model: unit triplets of an 'mlp' with {self.layers} hidden layers on "
                f"{self.length} tokens are not defined; one hidden layer on two tokens would do"
            )
        outgoing_mc = self.head.weight.T
        if not isinstance(layer := self.hidden[0], Gated):
            return *self._token_effects(layer), outgoing_mc
        gate_am, gate_bm = self._token_effects(layer.gate)
        up_am, up_bm = self._token_effects(layer.up)
        first_at, second_bt = torch.cat((gate_am, up_am), dim=1), torch.cat((up_bm, gate_bm), dim=1)
        return first_at, second_bt, torch.cat((outgoing_mc, outgoing_mc))

    @property
    def unit_layers(self) -> tuple[str, ...]:
        """The layer that TPS variant ``moments`` couples: the first, of gated units both halves."""
        return _first_units(self.hidden)

    def _token_effects(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Return what each token adds to the layer's outputs as the first (a, m) and as the second (b, m)."""
        first_md, second_md = layer.get_parameter("weight").chunk(2, dim=1)
        table_ad = self.embedding.weight
        return table_ad @ first_md.T, table_ad @ second_md.T


def _first_units(hidden: nn.Sequential) -> tuple[str, ...]:
    return ("hidden.0.gate * hidden.0.up",) if isinstance(hidden[0], Gated) else ("hidden.0",)


def _hidden_layers(features: int, widths: Sequence[int], *, gated: bool) -> nn.Sequential:
    layers = nn.Sequential()
    for width_in, width_out in pairwise((features, *widths)):
        if gated:
            layers.append(Gated(width_in, width_out))
        else:
            layers.append(nn.Linear(width_in, width_out))
            layers.append(nn.ReLU())
    return layers
