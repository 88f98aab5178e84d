"""Experts whose projections are layers of their own, in the place of those that hold all in one tensor.

Mixture-of-experts models of transformers hold the weights of all experts of a layer in tensors of three axes
and multiply them in one grouped product. A unit of an expert (one hidden number) can be pruned only where
that expert is a pair of layers. All experts of a module lose equally many units, each its own, so that they
fit into such tensors again: ``close_experts``.

Shape letters: t tokens, k experts that a token reaches, s slots (t · k), n experts, m model width, h hidden
width of an expert.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Final, cast, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import HALF_PRECISION, evaluation_mode, fixed_seed
from tpsprune.numerics.routing import find_routes
from tpsprune.pruning.parts import Part, Shape

FLAGS: Final = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
"""What transformers' ``use_experts_implementation`` has every class of experts say about its layout."""
HIDDEN: Final = re.compile(r"intermediate|expert_dim|ffn|hidden_features")
MOST_EXPERTS: Final = 2**16
"""Of a module: a file that says it holds more is not read to its end."""
TRIED_TOKENS: Final = 8
CLOSE: Final = 1e-3
HALF_CLOSE: Final = 5e-2


@final
class Expert(nn.Module):
    """down(act(gate x) · up x), or down(act(up x)) without a gate."""

    gate_proj: nn.Linear | None
    up_proj: nn.Linear
    down_proj: nn.Linear

    def __init__(self, experts: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
        super().__init__()
        for name in ("gate_proj", "up_proj", "down_proj"):
            self.add_module(name, layers.get(name))
        self._experts = [experts]  # In a list, for it is no child.

    def forward(self, x_sm: Tensor) -> Tensor:
        """Return what the expert makes of its tokens."""
        experts: Any = self._experts[0]
        up_sh = self.up_proj(x_sm)
        if self.gate_proj is None:
            inner_sh = experts.act_fn(up_sh)
        else:
            inner_sh = experts._apply_gate(_Pair(self.gate_proj(x_sm), up_sh))
        return cast(Tensor, self.down_proj(inner_sh))


@final
class _Pair:
    """Gate and up as a class's own ``_apply_gate`` takes them apart: by halves, or every other one."""

    def __init__(self, gate_sh: Tensor, up_sh: Tensor) -> None:
        self._parts = gate_sh, up_sh

    def chunk(self, count: int, dim: int) -> tuple[Tensor, Tensor]:
        """Return the two halves."""
        if (count, dim) != (2, -1):
            raise TypeError("gate and up are two halves of the last axis")
        return self._parts

    def __getitem__(self, index: Any) -> Tensor:
        if index == (..., slice(None, None, 2)):
            return self._parts[0]
        if index == (..., slice(1, None, 2)):
            return self._parts[1]
        raise TypeError("gate and up are every other number of the last axis")


@final
class OpenExperts(nn.Module):
    """Σ weight · expert(x) over the experts of each token: what the closed module computes, one by one.

    It is called like that module. Which tokens an expert sees is up to ``numerics.routing``.
    """

    def __init__(self, experts: nn.Module) -> None:
        """Take over the weights of ``experts``: the same values, flags, number types and devices."""
        super().__init__()
        shell = copy.copy(experts)
        shell._parameters = dict.fromkeys(experts._parameters)
        self._shell = [shell]
        named = dict(experts.named_parameters(recurse=False))
        shapes = {name: tuple(each.shape) for name, each in named.items()}
        layers: dict[str, dict[str, nn.Linear]] = {}
        for name, part in parts_of_experts(
            "", shapes, interleaved=not cast(Any, experts).is_concatenated
        ).items():
            rank, layer, tensor = name.split(".")
            source = named[part.source]
            values = nn.Parameter(part.of(source.detach()).clone(), requires_grad=source.requires_grad)
            of_expert = layers.setdefault(rank, {})
            if layer not in of_expert:
                of_expert[layer] = nn.Linear(1, 1, bias=False, device="meta")
            setattr(of_expert[layer], tensor, values)
        for rank, of_expert in layers.items():
            for each in of_expert.values():
                each.out_features, each.in_features = each.weight.shape
            self.add_module(rank, Expert(shell, of_expert))
        self.hidden = layers["0"]["down_proj"].in_features
        self.train(experts.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of what each token's experts make of it; ``hidden_states`` is (t, m)."""
        experts = list(self.children())
        slots_of, weight_s = find_routes(top_k_index, top_k_weights, len(experts))
        each_token = top_k_index.shape[-1]
        mixed_tm = torch.zeros_like(hidden_states)
        for expert, slots_s in zip(experts, slots_of, strict=True):
            if not len(slots_s):
                continue
            token_s = slots_s // each_token
            given_sm = expert(hidden_states[token_s]) * weight_s[slots_s, None]
            mixed_tm = mixed_tm.index_add(0, token_s, given_sm.to(mixed_tm.dtype))
        return mixed_tm


def parts_of_experts(name: str, shapes: Mapping[str, Shape], *, interleaved: bool = False) -> dict[str, Part]:
    """Return the tensors of opened experts, and where in the closed ones each lies.

    Args:
        name: of the module, as it is prefixed to those of its tensors.
        shapes: of all tensors that there are.
        interleaved: whether gate and up alternate (``is_concatenated`` is false).
    """
    prefix = f"{name}." if name else ""
    down = f"{prefix}down_proj"
    gated = f"{prefix}gate_up_proj" in shapes
    up = f"{prefix}gate_up_proj" if gated else f"{prefix}up_proj"
    if not all(len(shapes.get(each, ())) == 3 for each in (up, down)):
        return {}
    count, *_ = shapes[up]
    if count > MOST_EXPERTS:
        return {}
    # (n, rows, m) against (n, m, h), or both turned.
    halves = 2 if gated else 1
    turned = shapes[up][1] != halves * shapes[down][2] or shapes[up][2] != shapes[down][1]
    hidden, width = shapes[down][1:] if turned else reversed(shapes[down][1:])
    rows = {"up_proj": slice(0, hidden)}
    if gated:
        pair = (slice(0, 2 * hidden, 2), slice(1, 2 * hidden, 2))
        rows = dict(
            zip(
                ("gate_proj", "up_proj"),
                pair if interleaved else (slice(0, hidden), slice(hidden, 2 * hidden)),
                strict=True,
            )
        )
    found: dict[str, Part] = {}
    for rank in range(count):
        inside = f"{prefix}{rank}."
        for layer, where in rows.items():
            index = (rank, slice(None), where) if turned else (rank, where)
            found[f"{inside}{layer}.weight"] = Part(up, (hidden, width), index, turned)
            if f"{up}_bias" in shapes:
                found[f"{inside}{layer}.bias"] = Part(f"{up}_bias", (hidden,), (rank, where))
        found[f"{inside}down_proj.weight"] = Part(down, (width, hidden), (rank,), turned)
        if f"{down}_bias" in shapes:
            found[f"{inside}down_proj.bias"] = Part(f"{down}_bias", (width,), (rank,))
    return found


def why_experts_stay_closed(experts: nn.Module, *, tries: bool = True) -> str:
    """Return why a module of experts is not opened, or an empty string.

    ``tries``: compare what both give for a few random tokens, two experts each. Cost: a copy of all experts.
    """
    named = {name: tuple(each.shape) for name, each in experts.named_parameters()}
    parts = parts_of_experts("", named)
    held = {*named, *(name for name, _ in experts.named_buffers())}
    if left := sorted(held - {part.source for part in parts.values()}):
        return f"it holds a tensor of its own, {left[0]!r}"
    if experts._forward_hooks or experts._forward_pre_hooks:
        return "hooks are attached to it"
    if not tries:
        return ""
    count = next(iter(named.values()))[0]
    width = next(part.shape[0] for name, part in parts.items() if name.endswith("down_proj.weight"))
    like = next(experts.parameters())
    reached = min(2, count)
    with torch.no_grad(), fixed_seed(), evaluation_mode(experts):
        x_tm = torch.randn(TRIED_TOKENS, width).to(like)
        index_tk = torch.stack([torch.randperm(count)[:reached] for _ in x_tm]).to(like.device)
        weights_tk = torch.rand(index_tk.shape).to(like)
        try:
            wanted, found = (
                experts(x_tm, index_tk, weights_tk),
                OpenExperts(experts)(x_tm, index_tk, weights_tk),
            )
        # Code of another shape than is known here: it stays as it is.
        except Exception as error:  # noqa: BLE001
            return f"it is called in a way of its own ({type(error).__name__})"
    tolerance = HALF_CLOSE if like.dtype in HALF_PRECISION else CLOSE
    if not isinstance(wanted, Tensor) or wanted.shape != found.shape:
        return "it gives something else than a sum over experts"
    far = (wanted - found).float().square().mean() > tolerance**2 * wanted.float().square().mean()
    return "it computes something of its own" if bool(far) else ""


def is_experts(module: nn.Module) -> bool:
    """Return whether this holds the weights of experts in tensors of three axes, as transformers does."""
    shapes = {name: tuple(each.shape) for name, each in module.named_parameters(recurse=False)}
    says = all(isinstance(getattr(module, flag, None), bool) for flag in FLAGS)
    return says and bool(parts_of_experts("", shapes))


def closed_shapes_of_experts(
    name: str, before: Mapping[str, Shape], opened: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Return the shapes that pruned experts have in tensors of three axes again.

    Args:
        name: of the module.
        before: shapes of the closed tensors, dense.
        opened: shapes of the tensors of each expert, pruned.
    """
    of_first: dict[str, list[tuple[Part, Shape]]] = {}
    for each, part in parts_of_experts(name, before).items():
        if each.startswith(f"{name}.0."):
            of_first.setdefault(part.source, []).append((part, opened[each]))
    closed: dict[str, Shape] = {}
    for source, parts in of_first.items():
        rows, rest = sum(shape[0] for _, shape in parts), parts[0][1][1:]
        axes = (*rest, rows) if parts[0][0].turned else (rows, *rest)
        closed[source] = (before[source][0], *axes)
    return closed


def close_experts(opened: OpenExperts) -> nn.Module:
    """Return the closed module of opened experts of one hidden width: of the class it was, narrower.

    Raises:
        ValueError: they are of different widths.
    """
    shell = opened._shell[0]
    flags: Any = shell
    experts = cast(list[Expert], list(opened.children()))
    widths = {each.down_proj.in_features for each in experts}
    if len(widths) > 1:
        raise ValueError(f"experts of different widths cannot be held in one tensor: {sorted(widths)}")
    [hidden] = widths
    closed = copy.copy(shell)
    closed._parameters = dict(shell._parameters)

    def pack(tensors: list[list[Tensor]]) -> nn.Parameter:
        """Join the parts of each expert along their outputs, and stack the experts."""
        joined = []
        for parts in tensors:
            whole = parts[0]
            if len(parts) == 2:
                whole = torch.cat(parts) if flags.is_concatenated else torch.stack(parts, 1).flatten(0, 1)
            joined.append(whole.T if flags.is_transposed and whole.ndim == 2 else whole)
        # Memory as the module had it: contiguous.
        trains = any(part.requires_grad for parts in tensors for part in parts)
        return nn.Parameter(torch.stack(joined).detach().contiguous(), requires_grad=trains)

    up = "gate_up_proj" if flags.has_gate else "up_proj"
    inner = [[each for each in (expert.gate_proj, expert.up_proj) if each is not None] for expert in experts]
    for suffix, tensor in (("", "weight"), ("_bias", "bias")):
        if f"{up}{suffix}" in closed._parameters:
            closed._parameters[f"{up}{suffix}"] = pack(
                [[getattr(layer, tensor) for layer in layers] for layers in inner]
            )
            closed._parameters[f"down_proj{suffix}"] = pack(
                [[getattr(each.down_proj, tensor)] for each in experts]
            )
    for name, value in vars(shell).items():
        if type(value) is int and HIDDEN.search(name) and value in (opened.hidden, 2 * opened.hidden):
            closed.__dict__[name] = value // opened.hidden * hidden
    closed.train(opened.training)
    return closed
