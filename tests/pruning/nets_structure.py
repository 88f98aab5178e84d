"""Small networks of every kind that is pruned: simple ones, norms, groups, gates, skips, turned weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning.observed import noise


class OwnRmsNorm(nn.Module):
    """An RMS norm as language models define their own, its width in an attribute or not."""

    def __init__(self, width: int, *, remembers: bool = True, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-6
        self.plus_one = plus_one
        if remembers:
            self.hidden_size = width

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight + 1.0 if self.plus_one else self.weight) * normed.to(x.dtype)


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of an image, which stand on axis 1."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        return super().forward(x_bchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Conv1D(nn.Module):
    """The linear layer of GPT-2 as Hugging Face has it: its weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.1)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view((*x.size()[:-1], self.nf))


class Stream(nn.Module):
    """A residual stream of vectors under a norm before each perceptron and one at the end."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        width: int = 8,
        depth: int = 2,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.norms = nn.ModuleList(norm(width) for _ in range(depth))
        self.ups = nn.ModuleList(linear(width, 12) for _ in range(depth))
        self.downs = nn.ModuleList(linear(12, width) for _ in range(depth))
        self.norm = norm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x_btd: Tensor) -> Tensor:
        x_btd = self.embed(x_btd)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x_btd = x_btd + down(functional.gelu(up(norm(x_btd))))
        return self.head(self.norm(x_btd))


def conv1d(before: int, after: int) -> Conv1D:
    return Conv1D(after, before)


class Vit(nn.Module):
    """Patches, a class token, positions and scales that no layer holds, separate q, k and v."""

    def __init__(self, width: int = 8, heads: int = 2, depth: int = 1) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, width, 3, stride=3)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.ModuleList(VitBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_btd = self.patch(x_bchw).flatten(2).transpose(1, 2)
        x_btd = torch.cat([self.token.expand(len(x_btd), -1, -1), x_btd], dim=1) + self.positions
        for block in self.blocks:
            x_btd = block(x_btd)
        return self.head(self.norm(x_btd)[:, 0])


class VitBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.gamma1 = nn.Parameter(torch.full((width,), 0.1))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma2 = nn.Parameter(torch.full((width,), 0.1))
        self.num_heads = heads
        self.head_dim = width // heads

    def forward(self, x_btd: Tensor) -> Tensor:
        items, length, _ = x_btd.shape
        qkv = self.qkv(self.norm1(x_btd)).reshape(items, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(items, length, -1)
        x_btd = x_btd + self.gamma1 * self.proj(mixed)
        return x_btd + self.gamma2 * self.fc2(functional.gelu(self.fc1(self.norm2(x_btd))))


class Bottlenecks(nn.Module):
    """A grouped convolution between two ungrouped ones, with a norm of choice after each."""

    def __init__(
        self,
        groups: int = 4,
        width: int = 8,
        out: int | None = None,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        kind: type[nn.Module] = nn.Conv2d,
    ) -> None:
        super().__init__()
        out = out or width
        self.first = nn.Conv2d(2, width, 1)
        self.norm1 = norm(width)
        self.grouped = kind(width, out, 3, padding=1, groups=groups)
        self.norm2 = norm(out)
        self.last = nn.Conv2d(out, 6, 1)
        self.head = nn.Linear(6 * 36, 3)

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_bchw = functional.relu(self.norm1(self.first(x_bchw)))
        x_bchw = functional.relu(self.norm2(self.grouped(x_bchw)))
        return self.head(functional.relu(self.last(x_bchw)).flatten(1))


class Plain(nn.Module):
    """A stem, something in the middle, and a flatten into the head, whose block is an image."""

    def __init__(self, middle: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.middle = middle
        self.head = nn.Linear(width * 36, 3)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.head(functional.silu(self.middle(self.stem(x_bchw))).flatten(1))


class Gated(nn.Module):
    """A gated unit: one layer gives values and gates, side by side."""

    def __init__(self, *, chunk: bool) -> None:
        super().__init__()
        self.chunk = chunk
        self.both = nn.Linear(5, 12)
        self.down = nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x_bd: Tensor) -> Tensor:
        both = self.both(x_bd)
        if self.chunk:
            value, gate = both.chunk(2, dim=-1)
            gated = value * torch.sigmoid(gate)
        else:
            gated = functional.glu(both, dim=-1)
        return self.head(functional.relu(self.down(gated)))


class Twice(nn.Module):
    """The output of a layer, and its negative, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x_bd: Tensor) -> Tensor:
        h_bd = self.stem(x_bd)
        return self.head(functional.relu(self.norm(torch.cat([h_bd, -h_bd], dim=1))))


class Unet(nn.Module):
    """Down, up again by transposed convolution, and the skip concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 2, stride=2)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.leave = nn.Conv2d(9, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        skip = functional.relu(self.enter(x_bchw))
        up = functional.relu(self.up(functional.relu(self.down(skip))))
        return self.head(functional.relu(self.leave(torch.cat([up, skip], dim=1))))


class Tied(nn.Module):
    """A language model whose head is its embedding: the stream is not pruned, what branches off it is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_bt: Tensor) -> Tensor:
        x_btd = self.embedding(tokens_bt)
        return self.head(x_btd + self.down(functional.relu(self.up(x_btd))))


class DrawnNet(nn.Module):
    """Layers of given widths and kinds in a row: convolutions, plain, grouped or residual, then linear."""

    def __init__(self, kinds: list[str], widths: list[int], norm: str, hidden: int) -> None:
        super().__init__()
        norms: dict[str, Callable[[int], nn.Module]] = {
            "batch": nn.BatchNorm2d,
            "group": lambda width: nn.GroupNorm(2, width),
            "one-group": lambda width: nn.GroupNorm(1, width),
            "layer": LayerNorm2d,
            "none": lambda width: nn.Identity(),
        }
        self.kinds = kinds
        self.stem = nn.Conv2d(2, widths[0], 1)
        self.layers = nn.ModuleList()
        self.norms = nn.ModuleList()
        width = widths[0]
        for kind, (_, next_width) in zip(kinds, itertools.pairwise([*widths, widths[-1]]), strict=False):
            after = width if kind in ("residual", "depthwise") else next_width
            groups = {"grouped": 2, "depthwise": width}.get(kind, 1)
            self.layers.append(nn.Conv2d(width, after, 3, padding=1, groups=groups))
            self.norms.append(norms[norm](after))
            width = after
        self.hidden = nn.Linear(width * 9, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_bchw = torch.tanh(self.stem(functional.avg_pool2d(x_bchw, 2)))
        for kind, layer, norm in zip(self.kinds, self.layers, self.norms, strict=False):
            fresh = functional.silu(norm(layer(x_bchw)))
            x_bchw = x_bchw + fresh if kind == "residual" else fresh
        return self.head(torch.tanh(self.hidden(x_bchw.flatten(1))))


class Cnn(nn.Module):
    """Convolutions without biases, batch norm, pooling, then a flatten into a linear layer."""

    def __init__(self, widths: tuple[int, ...] = (6, 8), classes: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 2
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers, nn.MaxPool2d(2))
        self.head = nn.Linear(before * 9, classes)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.head(self.body(x_bchw).flatten(1))


class Block(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(before, width, 1, bias=False) if before != width else nn.Identity()

    def forward(self, x_bchw: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x_bchw)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x_bchw))


class Residual(nn.Module):
    """Two stages, the second behind a 1x1 projection."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, width), Block(width, 2 * width), Block(2 * width, 2 * width))
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_bchw = self.blocks(functional.relu(self.bn(self.stem(x_bchw))))
        return self.head(functional.adaptive_avg_pool2d(x_bchw, 1).flatten(1))


class Mixed(nn.Module):
    """A squeeze-and-excite gate, a depthwise convolution, a concatenation and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 6, 3, padding=1)
        self.right = nn.Conv2d(2, 5, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze = nn.Linear(6, 4)
        self.excite = nn.Linear(4, 6)
        self.slope = nn.PReLU(5)
        self.merge = nn.Conv2d(11, 7, 1)
        self.up = nn.ConvTranspose2d(7, 5, 2, stride=2)
        self.head = nn.Conv2d(5, 3, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        left = functional.relu(self.depthwise(functional.relu(self.left(x_bchw))))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(left.mean((2, 3))))))
        right = self.slope(self.right(x_bchw))
        merged = functional.relu(self.merge(torch.cat([left * gate[:, :, None, None], right], dim=1)))
        return self.head(functional.relu(self.up(merged)))


class TokenMlp(nn.Module):
    """One table for two tokens, their embeddings side by side."""

    def __init__(self, vocabulary: int = 7, width: int = 4, hidden: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(2 * width, hidden)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens_b2: Tensor) -> Tensor:
        return self.head(functional.relu(self.hidden(self.embedding(tokens_b2).flatten(1))))


class Transformer(nn.Module):
    """One layer with separate projections; ``norm`` puts a layer norm before the attention."""

    def __init__(self, vocabulary: int = 7, width: int = 8, heads: int = 2, *, norm: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(3, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.unembed = nn.Linear(width, vocabulary, bias=False)
        self.heads = heads

    def forward(self, tokens_bt: Tensor) -> Tensor:
        items, length = tokens_bt.shape
        x_btd = self.embedding(tokens_bt) + self.positions(torch.arange(length, device=tokens_bt.device))
        normed = self.norm(x_btd)
        q, k, v = (
            layer(normed).reshape(items, length, self.heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_btd = x_btd + self.o(mixed.transpose(1, 2).reshape(items, length, -1))
        x_btd = x_btd + self.mlp_out(functional.relu(self.mlp_in(x_btd)))
        return self.unembed(x_btd[:, -1])


def mlp(widths: tuple[int, ...] = (5, 9, 7, 3)) -> nn.Sequential:
    """A perceptron of these widths, the input's first and the classes' last."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def images(items: int = 32, seed: int = 0) -> Tensor:
    return noise(items, 2, 6, 6, seed=seed)


def vectors(items: int = 64, width: int = 5) -> Tensor:
    return noise(items, width)


def tokens(items: int = 32, length: int = 2) -> Tensor:
    return torch.randint(7, (items, length), generator=torch.Generator().manual_seed(0))


IMAGES, SERIES, VECTORS = images(48), noise(48, 4, 5), vectors(48)
ZOO = ("cnn", "residual", "mixed", "mlp", "token-mlp", "transformer")
STRUCTURES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "layer norm": (lambda: Stream(nn.LayerNorm), SERIES),
    "rms norm": (lambda: Stream(nn.RMSNorm), SERIES),
    "rms norm of somebody's own": (lambda: Stream(OwnRmsNorm), SERIES),
    "Conv1D": (lambda: Stream(nn.LayerNorm, linear=conv1d), SERIES),
    "vision transformer": (lambda: Vit(heads=4), IMAGES),
    "grouped, blocks": (lambda: Bottlenecks(4, 8, 12), IMAGES),
    "grouped, bundles": (lambda: Bottlenecks(2, 8, 12), IMAGES),
    "depthwise": (lambda: Plain(nn.Conv2d(8, 8, 3, padding=1, groups=8)), IMAGES),
    "depthwise with two outputs each": (lambda: Bottlenecks(8, 8, 16), IMAGES),
    "grouped and transposed": (lambda: Bottlenecks(4, 8, 12, kind=nn.ConvTranspose2d), IMAGES),
    "grouped under group norms": (lambda: Bottlenecks(4, 8, 12, norm=lambda n: nn.GroupNorm(2, n)), IMAGES),
    "grouped right behind the stem": (lambda: Plain(nn.Conv2d(8, 8, 3, padding=1, groups=2)), IMAGES),
    "group norm": (lambda: Plain(nn.GroupNorm(4, 8)), IMAGES),
    "group norm without weights": (lambda: Plain(nn.GroupNorm(4, 8, affine=False)), IMAGES),
    "group norm of one group": (lambda: Plain(nn.GroupNorm(1, 8)), IMAGES),
    "instance norm without weights": (lambda: Plain(nn.InstanceNorm2d(8)), IMAGES),
    "layer norm over channels": (lambda: Plain(LayerNorm2d(8)), IMAGES),
    "gated by chunk": (lambda: Gated(chunk=True), VECTORS),
    "gated by glu": (lambda: Gated(chunk=False), VECTORS),
    "twice side by side": (Twice, VECTORS),
    "skip and transposed convolution": (Unet, IMAGES),
}
"""Networks that can be pruned, by what is particular about them."""


def case(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network, of these or of the simple ones, and a batch for it."""
    torch.manual_seed(0)
    if name in STRUCTURES:
        make, batch = STRUCTURES[name]
        return make(), batch
    return {
        "cnn": lambda: (Cnn(), images()),
        "residual": lambda: (Residual(), images()),
        "mixed": lambda: (Mixed(), images()),
        "mlp": lambda: (mlp(), vectors()),
        "token-mlp": lambda: (TokenMlp(), tokens()),
        "transformer": lambda: (Transformer(), tokens(length=3)),
    }[name]()
