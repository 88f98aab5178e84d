"""What a layer is fed, window by window, beside what the dense model's layer puts out; streamed.

Shape letters: b items, c input elements, g groups of the layer, r rows, s positions sampled, p features of a
group (inputs times kernel positions), q outputs of a group.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.precision import widened

__all__ = ["PatchMoments", "PatchPart", "feature_count", "indexed", "patch_moments"]

ROWS_PER_FEATURE: Final = 16
LEAST_ROWS: Final = 8192
HELD_OUT: Final = 4
"""Every batch keeps the last one in four of its items to choose the ridge on."""

Watched: TypeAlias = dict[str, list[Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class PatchPart:
    """Means and biased covariances over ``rows`` positions; of y the variances alone."""

    rows: int
    mean_x_gp: Tensor
    mean_y_gq: Tensor
    xx_gpp: Tensor
    xy_gpq: Tensor
    yy_gq: Tensor

    def raw(self) -> PatchPart:
        """Return moments about zero, for a layer that has no bias."""
        x_gp, y_gq = self.mean_x_gp, self.mean_y_gq
        return PatchPart(
            self.rows,
            torch.zeros_like(x_gp),
            torch.zeros_like(y_gq),
            self.xx_gpp + x_gp[:, :, None] * x_gp[:, None, :],
            self.xy_gpq + x_gp[:, :, None] * y_gq[:, None, :],
            self.yy_gq + y_gq.square(),
        )


@dataclass(frozen=True, slots=True, eq=False)
class PatchMoments:
    """Moments of a layer's input patches x in the cut model with its outputs y in the dense model.

    ``whole`` is of all items, ``fit`` and ``held`` of three in four and of the fourth; the latter two are
    missing where no batch has four items.
    """

    whole: PatchPart
    fit: PatchPart | None
    held: PatchPart | None


def patch_moments(
    dense: nn.Module,
    cut: nn.Module,
    batches: Sequence[Any],
    alive: Mapping[str, Tensor],
    *,
    seed: int = 0,
) -> dict[str, PatchMoments]:
    """Return by layer the moments from which it is refitted.

    Both models, of one shape, are called in evaluation mode, once per batch. Of each output map as many
    positions are drawn, the same for all items of a batch, as give 16 rows per feature and no fewer than
    8,192; neighbours say nearly the same. Padding is seen as the layer sees it.

    Args:
        dense: what to aim at.
        cut: the model as cut so far, its consumers silenced and not yet sliced.
        batches: prepared, on the models' device.
        alive: by layer name, whether each element of its input axis is still there (``alive_c``); only
            layers without a ``refit_fault``.
        seed: of the positions; torch's own generator is neither read nor moved.

    Cost: the forward passes, and r·(p + q)² multiply-adds for each group of each layer, r ≈ 16 p;
    memory 3·8·g·p² bytes for each layer.
    """
    sums: dict[str, list[_Sums]] = {name: [_Sums(), _Sums()] for name in alive}
    generator = torch.Generator().manual_seed(seed)
    items = sum(map(_items, batches))
    with torch.no_grad(), evaluation_mode(dense), evaluation_mode(cut):
        for batch in batches:
            given, said = _watched(cut, batch, alive, "in"), _watched(dense, batch, alive, "out")
            for name, alive_c in alive.items():
                module = cast(nn.Linear | _ConvNd, cut.get_submodule(name))
                wanted = max(LEAST_ROWS, ROWS_PER_FEATURE * feature_count(module, alive_c))
                for x, y in zip(given[name], said[name], strict=True):
                    x_bsgp, y_bsgq = _rows(module, x, y, alive_c, math.ceil(wanted / items), generator)
                    held = len(x_bsgp) // HELD_OUT
                    split = len(x_bsgp) - held
                    sums[name][0].add(x_bsgp[:split], y_bsgq[:split])
                    if held:
                        sums[name][1].add(x_bsgp[split:], y_bsgq[split:])
    return {
        name: _moments(fit.part(), held.part() if held.rows else None)
        for name, (fit, held) in sums.items()
        if fit.rows
    }


def _rows(
    module: nn.Linear | _ConvNd,
    given: Tensor,
    said: Tensor,
    alive_c: Tensor,
    wanted: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return patches and outputs at ``wanted`` positions: (items, positions, groups, features or outputs)."""
    if not isinstance(module, _ConvNd):
        x_bsp, y_bsq = (tensor.reshape(len(tensor), -1, tensor.shape[-1]) for tensor in (given, said))
        chosen_s = _drawn(x_bsp.shape[1], wanted, generator).to(given.device)
        return widened(x_bsp[:, chosen_s][..., alive_c])[:, :, None], widened(y_bsq[:, chosen_s])[:, :, None]
    seen = given[:, alive_c] if indexed(module) else given * alive_c.view(-1, *[1] * (given.ndim - 2))
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    seen = functional.pad(seen, module._reversed_padding_repeated_twice, mode=mode)
    sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for axis, (kernel, stride, dilation) in enumerate(sizes, start=2):
        seen = seen.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    maps = said.shape[2:]
    chosen_s = _drawn(math.prod(maps), wanted, generator).to(given.device)
    place: tuple[Any, ...] = (slice(None), slice(None), *torch.unravel_index(chosen_s, maps))
    x_bcs = seen[place]
    x_bsgp = x_bcs.movedim(2, 1).reshape(len(given), len(chosen_s), module.groups, -1)
    y_bsgq = said[place].movedim(2, 1).reshape(len(given), len(chosen_s), module.groups, -1)
    return widened(x_bsgp), widened(y_bsgq)


def _items(batch: Any) -> int:
    first = next(iter(batch.values())) if isinstance(batch, Mapping) else batch
    return len(first[0] if isinstance(first, tuple) else first)


def _drawn(length: int, wanted: int, generator: torch.Generator) -> Tensor:
    if wanted >= length:
        return torch.arange(length)
    return torch.randperm(length, generator=generator)[:wanted]


def indexed(module: nn.Module) -> bool:
    """Return whether inputs that are gone are left out of the features, or stand there as zeros."""
    return not (isinstance(module, _ConvNd) and module.groups > 1)


def feature_count(module: nn.Linear | _ConvNd, alive_c: Tensor) -> int:
    """Return p, the features that each output of a layer is solved for."""
    if not isinstance(module, _ConvNd):
        return int(alive_c.sum())
    inputs = int(alive_c.sum()) if indexed(module) else module.in_channels // module.groups
    return inputs * math.prod(module.kernel_size)


def _watched(model: nn.Module, batch: Any, names: Iterable[str], side: Literal["in", "out"]) -> Watched:
    """Run a batch and return what the named layers are given, or what they put out, call by call."""
    seen: Watched = defaultdict(list)
    with ExitStack() as stack:
        for name in names:

            def keep(
                _module: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                out: Tensor,
                name: str = name,
            ) -> None:
                seen[name].append(out if side == "out" else args[0] if args else kwargs["input"])

            handle = model.get_submodule(name).register_forward_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        call_model(model, batch)
    return seen


class _Sums:
    """Running sums about the first means, so that features far from zero lose no digits."""

    def __init__(self) -> None:
        self.rows = 0
        self.shift_gp = self.shift_gq = self.sum_gp = self.sum_gq = torch.empty(0)
        self.xx_gpp = self.xy_gpq = self.yy_gq = torch.empty(0)

    def add(self, x_bsgp: Tensor, y_bsgq: Tensor) -> None:
        x_grp, y_grq = x_bsgp.flatten(0, 1).movedim(0, 1), y_bsgq.flatten(0, 1).movedim(0, 1)
        if not self.rows:
            self.shift_gp, self.shift_gq = x_grp.mean(1), y_grq.mean(1)
            self.sum_gp, self.sum_gq = torch.zeros_like(self.shift_gp), torch.zeros_like(self.shift_gq)
            self.xx_gpp = x_grp.new_zeros(len(x_grp), x_grp.shape[2], x_grp.shape[2])
            self.xy_gpq = x_grp.new_zeros(len(x_grp), x_grp.shape[2], y_grq.shape[2])
            self.yy_gq = torch.zeros_like(self.shift_gq)
        x_grp, y_grq = x_grp - self.shift_gp[:, None], y_grq - self.shift_gq[:, None]
        self.rows += x_grp.shape[1]
        self.sum_gp += x_grp.sum(1)
        self.sum_gq += y_grq.sum(1)
        self.xx_gpp.baddbmm_(x_grp.mT, x_grp)
        self.xy_gpq.baddbmm_(x_grp.mT, y_grq)
        self.yy_gq += y_grq.square().sum(1)

    def part(self) -> PatchPart:
        x_gp, y_gq = self.sum_gp / self.rows, self.sum_gq / self.rows
        return PatchPart(
            self.rows,
            self.shift_gp + x_gp,
            self.shift_gq + y_gq,
            self.xx_gpp / self.rows - x_gp[:, :, None] * x_gp[:, None, :],
            self.xy_gpq / self.rows - x_gp[:, :, None] * y_gq[:, None, :],
            self.yy_gq / self.rows - y_gq.square(),
        )


def _moments(fit: PatchPart, held: PatchPart | None) -> PatchMoments:
    if held is None:
        return PatchMoments(fit, None, None)
    share = fit.rows / (fit.rows + held.rows)
    x_gp, y_gq = held.mean_x_gp - fit.mean_x_gp, held.mean_y_gq - fit.mean_y_gq
    between = share * (1 - share)
    whole = PatchPart(
        fit.rows + held.rows,
        fit.mean_x_gp + (1 - share) * x_gp,
        fit.mean_y_gq + (1 - share) * y_gq,
        share * fit.xx_gpp + (1 - share) * held.xx_gpp + between * x_gp[:, :, None] * x_gp[:, None, :],
        share * fit.xy_gpq + (1 - share) * held.xy_gpq + between * x_gp[:, :, None] * y_gq[:, None, :],
        share * fit.yy_gq + (1 - share) * held.yy_gq + between * y_gq.square(),
    )
    return PatchMoments(whole, fit, held)
