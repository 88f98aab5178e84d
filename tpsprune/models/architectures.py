"""The networks that recipes name: fully connected, convolutional, residual, and a small transformer.

Shapes: n items, i pairs of tokens, l tokens of an item, f features, a first token, b second token, m units,
t triplets, c classes (channels of images), h height, w width, d width of a transformer, s query positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.errors import ModelError
from tpsprune.models.attention_forms import attend, attend_forgetting, attend_in_pairs
from tpsprune.recipe.task import AttentionForm


@final
class Gated(nn.Module):
    """A layer of gated linear units: h = relu(G x + g) ⊙ (U x + d).

    Each unit multiplies two linear readings of its input, so that a product need not be built out of bends.
    Unit m is row m of both matrices: they are pruned together. Parameters: 2 · (features + 1) · width.

    Source: Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202), ReGLU, here with biases.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(features, width)
        self.up = nn.Linear(features, width)

    def forward(self, inputs_nf: Tensor) -> Tensor:
        """Return the outputs of the units (n, m)."""
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
                f"{self.length} tokens are not defined; expected one hidden layer on two tokens"
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
            layers.extend((nn.Linear(width_in, width_out), nn.ReLU()))
    return layers


SMALLEST_SIDE = 4


@final
class ConvBlock(nn.Module):
    """3×3 convolution without bias, batch norm, ReLU, and a 2×2 maximum with ``pool``.

    Weights are drawn as in He et al. 2015, "Delving Deep into Rectifiers" (arXiv:1502.01852), eq. 14.
    """

    def __init__(self, channels_in: int, channels_out: int, *, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return maps of as many channels as the block has, half the size where it pools."""
        maps: Tensor = self.pool(self.relu(self.norm(self.conv(images_nchw))))
        return maps


@final
class Cnn(nn.Module):
    """One ``ConvBlock`` per width, the mean over positions, and a linear head.

    Size is halved after every ``pool_every`` blocks as long as four pixels a side remain. Parameters:
    Σ (9 · wᵢ₋₁ · wᵢ + 2 wᵢ) + (w_last + 1) · classes, w₀ = channels.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], widths: Sequence[int], pool_every: int, classes: int
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        side = min(height, width)
        self.blocks = nn.Sequential()
        for number, block_width in enumerate(widths, start=1):
            pool = number % pool_every == 0 and side // 2 >= SMALLEST_SIDE
            self.blocks.append(ConvBlock(channels, block_width, pool=pool))
            channels = block_width
            side = side // 2 if pool else side
        self.head = nn.Linear(channels, classes)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return scores (n, classes)."""
        scores: Tensor = self.head(self.blocks(images_nchw).mean((2, 3)))
        return scores


@final
class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, and the input added before the last ReLU.

    Where the shape changes the input goes through a 1×1 convolution with batch norm: the paper's
    option B. Its option A (subsample, pad with zeros) has no parameters, but ties channels of one stage
    to those of the next by position, so that none could be pruned.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels_out
            else nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        )

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """Return maps (n, channels_out, h / stride, w / stride)."""
        hidden = functional.relu(self.norm1(self.conv1(maps_nchw)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(maps_nchw))


@final
class ResNet(nn.Module):
    """A 3×3 convolution, three stages of n = (depth − 2) / 6 blocks, the mean over positions, a linear head.

    Stages have w, 2w and 4w channels; the second and the third halve the size. Convolutions are drawn as
    in He et al. 2015 (arXiv:1502.01852), eq. 14. Parameters with c input channels and k classes:
    9cw + 2w + w²·(378n − 80) + 28nw + 12w + (4w + 1)k: 272,474 for depth 20, w = 16, c = 3, k = 10.
    """

    def __init__(self, channels: int, depth: int, width: int, classes: int) -> None:
        super().__init__()
        blocks_per_stage = (depth - 2) // 6
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential()
        channels = width
        for stage in range(3):
            blocks = nn.Sequential()
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width << stage, stride))
                channels = width << stage
            self.stages.append(blocks)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return scores (n, classes)."""
        maps = self.stages(functional.relu(self.norm(self.conv(images_nchw))))
        scores: Tensor = self.head(maps.mean((2, 3)))
        return scores


@final
class Transformer(nn.Module):
    """Embedding, learned positions, causal attention without biases, MLPs with ReLU, no layer norm.

    ``form``: softmax attention, ``forgetting`` (a gate with a bias for each head, and no positions) or
    ``simplicial`` (second keys and values), see ``attention_forms``.

    The prediction is read at "=", the last position, which sees all tokens. The last layer computes nothing
    at the other positions but keys and values; those before it, in ``earlier``, compute every position.
    Weights are normal with standard deviation width^(−1/2), (vocabulary + 1)^(−1/2) for the unembedding,
    biases zero. Parameters, with vocabulary p, l tokens and n layers:
    (p + l + 2)·d + n·(4d² + 2dm + m + d) + dc; ``forgetting`` has n·h·(d + 1) − (l + 1)·d more for h heads,
    ``simplicial`` n·2d².
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        heads: int,
        mlp_width: int,
        classes: int,
        *,
        length: int = 2,
        layers: int = 1,
        form: AttentionForm = "softmax",
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.length = length
        self.num_heads = heads
        self.embedding = nn.Embedding(vocabulary + 1, width)
        # A table rather than a parameter: dependency graphs follow it when the width is pruned.
        self.positions = nn.Embedding(length + 1, width) if form != "forgetting" else None
        self.earlier = nn.ModuleList(_Layer(width, heads, mlp_width, form) for _ in range(layers - 1))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.unembed = nn.Linear(width, classes, bias=False)
        self.forget, self.k2, self.v2 = _more_projections(form, width, heads)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                else:
                    fan = vocabulary + 1 if name.startswith("unembed") else width
                    parameter.normal_(std=fan**-0.5)

    def forward(self, tokens_il: Tensor) -> Tensor:
        """Return scores (i, c) of token ids (i, length)."""
        stream_id = self._after_attention(tokens_il)
        hidden_im = functional.relu(self.mlp_in(stream_id))
        scores: Tensor = self.unembed(stream_id + self.mlp_out(hidden_im))
        return scores

    @property
    def unit_layers(self) -> tuple[str, ...]:
        """The layer that TPS variant ``moments`` couples: the last MLP's, where the prediction is read."""
        return ("mlp_in",)

    @property
    def has_unit_triplets(self) -> bool:
        """Whether ``unit_triplets`` is defined: for two tokens, with any number of layers."""
        return self.length == 2

    @property
    def triplets_from_weights(self) -> bool:
        """Whether triplets are all that joins two tokens: never, attention multiplies them already."""
        return False

    def unit_triplets(self, tokens_i2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return u (a, m), v (b, m) and o (m, c): main effects of tokens on MLP units, and units on classes.

        The units are those of the last layer. With h (i, m) their pre-activations at the last position,
        u[a] is the mean of h over the pairs whose first token is a, less the mean over all pairs; v[b]
        likewise for the second; a token that does not occur gets 0. o = (W_unembed · W_mlp_out)ᵀ, what a
        unit adds to each score directly. All are differentiable. What h holds of the two tokens together
        is not seen.

        Raises:
            ModelError: ``has_unit_triplets`` does not hold.
        """
        if not self.has_unit_triplets:
            raise ModelError(
                f"task.model: unit triplets of a 'transformer' on {self.length} tokens are not defined; "
                "expected two tokens"
            )
        pre_activation_im = self.mlp_in(self._after_attention(tokens_i2))
        grand_mean_m = pre_activation_im.mean(0)
        first_am, second_bm = (
            self._main_effect(pre_activation_im - grand_mean_m, token_i) for token_i in tokens_i2.unbind(1)
        )
        return first_am, second_bm, (self.unembed.weight @ self.mlp_out.weight).T

    def _main_effect(self, deviation_im: Tensor, token_i: Tensor) -> Tensor:
        sums_am = deviation_im.new_zeros(self.vocabulary, deviation_im.shape[1])
        counts_a = token_i.bincount(minlength=self.vocabulary).clamp(min=1)
        return sums_am.index_add(0, token_i, deviation_im) / counts_a[:, None]

    def _after_attention(self, tokens_il: Tensor) -> Tensor:
        """Return the residual stream (i, d) at the last position, the last layer's attention added."""
        equals_i1 = tokens_il.new_full((tokens_il.shape[0], 1), self.vocabulary)
        stream_ild: Tensor = self.embedding(torch.cat((tokens_il, equals_i1), dim=1))
        if self.positions is not None:
            stream_ild = stream_ild + self.positions(torch.arange(self.length + 1, device=tokens_il.device))
        for layer in self.earlier:
            stream_ild = layer(stream_ild)
        last_i1d = stream_ild[:, -1:]
        after_i1d: Tensor = last_i1d + _attention(self, last_i1d, stream_ild, causal=False)
        return after_i1d.squeeze(1)


@final
class _Layer(nn.Module):
    """One layer at every position (i, l, d), each of which sees itself and those before it."""

    def __init__(self, width: int, heads: int, mlp_width: int, form: AttentionForm) -> None:
        super().__init__()
        self.num_heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.forget, self.k2, self.v2 = _more_projections(form, width, heads)

    def forward(self, stream_ild: Tensor) -> Tensor:
        stream_ild = stream_ild + _attention(self, stream_ild, stream_ild, causal=True)
        after_ild: Tensor = stream_ild + self.mlp_out(functional.relu(self.mlp_in(stream_ild)))
        return after_ild


class _Projections(Protocol):
    num_heads: int
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    forget: nn.Linear | None
    k2: nn.Linear | None
    v2: nn.Linear | None


def _more_projections(
    form: AttentionForm, width: int, heads: int
) -> tuple[nn.Linear | None, nn.Linear | None, nn.Linear | None]:
    """Return the layers that a form of attention has besides q, k, v and o: gate, second keys and values."""
    if form == "forgetting":
        return nn.Linear(width, heads), None, None
    if form == "simplicial":
        return None, nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
    return None, None, None


def _attention(layer: _Projections, asking_isd: Tensor, stream_ild: Tensor, *, causal: bool) -> Tensor:
    """Return the attention output of the query positions (i, s, d), the last of the stream's."""

    def by_head(projection: nn.Linear, values: Tensor) -> Tensor:
        # The width of a head is left open, so that it may be pruned.
        found: Tensor = projection(values)
        return found.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]

    q, k, v = by_head(layer.q, asking_isd), by_head(layer.k, stream_ild), by_head(layer.v, stream_ild)
    if layer.forget is not None:
        seen = attend_forgetting(q, k, v, layer.forget(stream_ild).mT)
    elif layer.k2 is not None and layer.v2 is not None:
        seen = attend_in_pairs(q, k, by_head(layer.k2, stream_ild), v, by_head(layer.v2, stream_ild))
    else:
        seen = attend(q, k, v, causal=causal)
    heard_isd: Tensor = layer.o(seen.transpose(1, 2).flatten(2))
    return heard_isd
