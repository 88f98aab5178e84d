"""Networks whose units come in unusual ways: norms over them, groups, bare parameters, turned weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class OwnRmsNorm(nn.Module):
    """An RMS norm as language models bring their own, its width in an attribute or not."""

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
    """Patches, a class token, positions and scales as bare parameters, separate q, k and v."""

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
    """A grouped convolution between two plain ones, with a norm of choice after each."""

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
    """A gated unit: one layer puts out values and gates, side by side."""

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
    """What a layer says, and its negative, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x_bd: Tensor) -> Tensor:
        h_bd = self.stem(x_bd)
        return self.head(functional.relu(self.norm(torch.cat([h_bd, -h_bd], dim=1))))


class Unet(nn.Module):
    """Down, up again by transposed convolution, and the skip put beside it."""

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


class DrawnNet(nn.Module):
    """Layers of drawn widths and kinds in a row: convolutions, plain, grouped or residual, then linear."""

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
        for kind, (_, drawn) in zip(kinds, itertools.pairwise([*widths, widths[-1]]), strict=False):
            after = width if kind in ("residual", "depthwise") else drawn
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
