"""What is opened before units are sought: modules whose tensors hold the weights of several layers, or none.

- ``nn.MultiheadAttention`` becomes four linear layers (``open_attention``);
- experts in tensors of three axes become layers of their own, and are closed again (``open_experts``);
- a layer whose weight is computed on every call (weight norm, weight standardisation) becomes a plain one
  (``plain_layers``).

The opened model computes what the closed one does. A plan names what it opens, and ``parts_of`` says from the
names and shapes of a model's tensors alone what becomes of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.numerics.forward import HALF_PRECISION
from tpsprune.pruning.open_attention import OpenAttention, parts_of_attention, why_attention_stays_closed
from tpsprune.pruning.open_experts import (
    OpenExperts,
    close_experts,
    closed_shapes_of_experts,
    is_experts,
    parts_of_experts,
    why_experts_stay_closed,
)
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.parts import Part, Shape
from tpsprune.pruning.plain_layers import is_computed, parts_of_plain, plain_layer, why_it_stays_computed
from tpsprune.pruning.surgery import copy_model

ALIKE: Final = 1e-2
"""What the outputs of the opened model may differ by, over their spread: a token may reach another expert."""
HALF_ALIKE: Final = 1e-1
NOT_ALIKE: Final = "with it opened the model gives something else"


def open_layers(model: nn.Module, names: Sequence[str] | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of ``model`` in which modules are open, and the names of those.

    An encoder around an attention no longer packs padded batches into nested tensors: its outputs at padded
    places are then those it gives in training, not zeros.

    Args:
        model: not changed.
        names: the modules to open; ``None`` is all that can be. Those that are named are not tried out first,
            so that a shell without values is opened too. With nothing to open, a copy is returned.

    Raises:
        PruneError: one that is named is not there, is nothing that is opened, or cannot be.
    """
    opened = copy_model(model)
    if names is None:
        chosen = tuple(name for name, reason in _reasons(opened, tries=True).items() if name and not reason)
    else:
        reasons = _reasons(opened, tries=False)
        for name in names:
            if name not in reasons:
                raise PruneError(
                    f"no module that can be opened is named {name!r}{did_you_mean(name, reasons)}"
                )
            if reasons[name]:
                raise PruneError(f"{name!r} cannot be opened: {reasons[name]}")
        chosen = tuple(name for name in reasons if name in names)
    for name in reversed(chosen):  # What lies inside another first.
        opened.set_submodule(name, _opened(opened.get_submodule(name)))
    for owner in opened.modules():
        if isinstance(owner, nn.TransformerEncoder) and any(
            isinstance(module, OpenAttention) for module in owner.modules()
        ):
            owner.use_nested_tensor = False
    return opened, chosen


def open_what_computes_alike(
    model: nn.Module, batch: Any
) -> tuple[nn.Module, tuple[str, ...], dict[str, str]]:
    """Open what can be opened without another output: a weight may depend on what a layer is given.

    Args:
        model: not changed; called in evaluation mode.
        batch: a few items.

    Returns:
        The opened copy, the names of what is open in it, and what is not with the reason.

    Cost: a pass of each model; where they differ two for each module that can be opened.
    """
    reasons = _reasons(model, tries=True)
    closed = {name: why for name, why in reasons.items() if name and why}
    opened, names = open_layers(model, [name for name in reasons if name and name not in closed])
    # An encoder gives something else at padded places, and is meant to, once its attention is open.
    known = [name for name in names if isinstance(model.get_submodule(name), nn.MultiheadAttention)]
    others = [name for name in names if name not in known]
    like = open_layers(model, known)[0] if others and known else model
    if others and not _computes_alike(opened, like, batch):
        alone = {name: _computes_alike(open_layers(model, [*known, name])[0], like, batch) for name in others}
        closed |= {name: NOT_ALIKE for name in alone if not alone[name]}
        names = tuple(name for name in names if name not in closed)
        opened, _ = open_layers(model, names)
    return opened, names, closed


def _computes_alike(opened: nn.Module, model: nn.Module, batch: Any) -> bool:
    half = any(each.dtype in HALF_PRECISION for each in model.parameters())
    try:
        return output_error(opened, model, [batch]) <= (HALF_ALIKE if half else ALIKE) ** 2
    # A module around may read what the opened one has no more.
    except Exception:  # noqa: BLE001
        return False


def is_closed(module: nn.Module) -> bool:
    """Return whether a module is of a kind that is opened."""
    return isinstance(module, nn.MultiheadAttention) or is_experts(module) or is_computed(module)


def _reasons(model: nn.Module, *, tries: bool) -> dict[str, str]:
    """Return the modules that are of a kind that is opened, and why each cannot be, or an empty text."""
    holders = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    uses = Counter(id(each) for module in model.modules() for each in module.parameters(recurse=False))
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if not is_closed(module):
            continue
        if isinstance(module, nn.MultiheadAttention):
            reason = why_attention_stays_closed(module)
        elif is_experts(module):
            reason = why_experts_stay_closed(module, tries=tries)
        else:
            reason = why_it_stays_computed(module, tries=tries)
        shared = (tensor for tensor, each in module.named_parameters() if uses[id(each)] > 1)
        reason = reason or next((f"its {tensor!r} is also that of another module" for tensor in shared), "")
        found[name] = reason or ("the model holds it under several names" if holders[id(module)] > 1 else "")
    return found


def close_layers(model: nn.Module) -> None:
    """Close, in place, what does not stay open: experts, of one hidden width in each module.

    Raises:
        PruneError: a plan has left experts of a module at different widths.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, OpenExperts):
            try:
                model.set_submodule(name, close_experts(module))
            except ValueError as error:
                raise PruneError(f"{name}: {error}") from error


def _opened(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        return OpenAttention(module)
    return OpenExperts(module) if is_experts(module) else plain_layer(module)


def parts_of(name: str, shapes: Mapping[str, Shape]) -> dict[str, Part]:
    """Return the tensors that there are once the module ``name`` is open, with where they come from.

    Args:
        name: of the module.
        shapes: of all tensors of the model, by name.

    Returns:
        Nothing where no module of that name can be one that is opened: it has neither packed weights nor a
        ``weight``.
    """
    return parts_of_attention(name, shapes) or parts_of_experts(name, shapes) or parts_of_plain(name, shapes)


def _closed_tensors(name: str, shapes: Mapping[str, Shape], parts: Mapping[str, Part]) -> set[str]:
    """Return the tensors that are no more, or made anew, once a module is open."""
    closed = {part.source for part in parts.values()}
    if parts.keys() <= {f"{name}.weight", f"{name}.bias"}:
        # A plain layer has nothing else: what its weight was computed from is gone.
        closed |= {each for each in shapes if each.startswith(f"{name}.")}
    return closed


def opened_shapes(shapes: Mapping[str, Shape], names: Sequence[str]) -> dict[str, Shape]:
    """Return the shapes of a model's tensors once the modules ``names`` are open."""
    opened = dict(shapes)
    for name in names:
        parts = parts_of(name, shapes)
        for closed in _closed_tensors(name, shapes, parts):
            opened.pop(closed, None)
        opened.update({each: part.shape for each, part in parts.items()})
    return opened


def closed_shapes(
    opened: Mapping[str, Shape], names: Sequence[str], before: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Return the shapes of a ticket's tensors once what does not stay open is closed again.

    Args:
        opened: shapes of the tensors while all of ``names`` are open, pruned or not.
        names: the modules that are opened.
        before: shapes of the dense model's tensors.
    """
    closed = dict(opened)
    for name in names:
        if parts := parts_of_experts(name, before):
            closed.update(closed_shapes_of_experts(name, before, opened))
            for each in parts:
                closed.pop(each, None)
    return closed


def opened_state(
    state: Mapping[str, Mapping[str, Any]], names: Sequence[str], shapes: Mapping[str, Shape]
) -> dict[str, dict[str, Any]]:
    """Return optimizer state by parameter name as that of the opened model.

    What is held for a closed tensor falls into parts as it does; a single number (``step``) and whatever is
    no tensor is held by each of them. A weight that was computed starts afresh, and so do experts with biases
    (whose gates may alternate with what they gate).
    """
    opened = {name: dict(entries) for name, entries in state.items()}
    for name in names:
        parts = parts_of(name, shapes)
        alternate = any(part.source.endswith("down_proj_bias") for part in parts.values())
        held = {each: opened.pop(each, None) for each in _closed_tensors(name, shapes, parts)}
        for each, part in parts.items():
            entries = held[part.source]
            if entries is not None and part.index is not None and not alternate:
                opened[each] = {key: _part(value, part) for key, value in entries.items()}
    return opened


def closed_state(
    state: Mapping[str, Mapping[str, Any]], names: Sequence[str], shapes: Mapping[str, Shape]
) -> dict[str, dict[str, Any]]:
    """Return optimizer state of the opened, pruned model as that of the ticket, its experts closed again."""
    closed = {name: dict(entries) for name, entries in state.items()}
    for name in names:
        by_source: dict[str, list[tuple[Part, dict[str, Any]]]] = {}
        for each, part in parts_of_experts(name, shapes).items():
            if each in closed:
                by_source.setdefault(part.source, []).append((part, closed.pop(each)))
        for source, held in by_source.items():
            closed[source] = {key: _joined(held, key, shapes[source][0]) for key in held[0][1]}
    return closed


def _part(value: Any, part: Part) -> Any:
    if isinstance(value, Tensor) and value.numel() > 1:
        return part.of(value).clone()
    return value.clone() if isinstance(value, Tensor) else value


def _joined(held: Sequence[tuple[Part, dict[str, Any]]], key: str, experts: int) -> Any:
    """Return what is held for the parts of all experts as held for the closed tensor: rows, then experts."""
    part, _ = held[0]
    values = [entries[key] for _, entries in held]
    if not isinstance(values[0], Tensor) or values[0].numel() == 1:
        return values[0]
    each = len(values) // experts
    rows = [torch.cat(values[rank * each : (rank + 1) * each]) for rank in range(experts)]
    return torch.stack([row.T if part.turned else row for row in rows])
