"""Extraction from Python: a model and some batches in, a smaller model out; no recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune import measure, pruning
from tpsprune.data.dataset import batches_of
from tpsprune.errors import PruneError
from tpsprune.loop.unwrap import device_of
from tpsprune.pruning import Extraction
from tpsprune.recipe.prune import Latency, Macs, Target
from tpsprune.recipe.settings import prune_settings


@torch.inference_mode(False)
def extract(
    model: nn.Module,
    calibration_data: Tensor | Iterable[Any],
    target: Target | None = None,
    *,
    labels: Sequence[Tensor] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Extraction:
    """Draw a smaller model from a trained one, without retraining it.

    >>> import torch, tpsprune
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> ticket = tpsprune.extract(model, torch.randn(512, 8), target=tpsprune.Macs(0.5))
    >>> ticket.ticket[0].out_features, ticket.macs_share, model[0].out_features
    (16, 0.5, 32)
    >>> again = tpsprune.replay(model, ticket.plan)  # the plan on other weights, without compensation
    >>> tuple(again[2].weight.shape)
    (4, 16)

    Args:
        model: not changed, whatever happens: mode, flags, devices and number types too.
        calibration_data: a few hundred items or more, prepared as for evaluation. A tensor or a
            tuple is passed by position, a mapping by keyword. A *list*, as a ``DataLoader`` yields it, is
            inputs and, last, labels. A single tensor is all the items at once and is split. All of it is kept
            in memory: take a part of a long loader with ``itertools.islice``.
        target: ``Macs``, ``Params``, ``Latency``, ``Tolerance`` or ``Widths``; half the multiply-accumulates
            without one.
        labels: one tensor a batch; only ``units="taylor"`` uses them. Those of list batches are taken from
            the batches.
        seed: of ``units="random"`` and of the order of items in the repair.
        settings: the fields of ``[prune]`` in a recipe (``ignored_layers``, ``round_to``, ``compensate``,
            ``repair_steps``, ...).

    Returns:
        The ticket, its plan, the change of every group, what was not pruned and why.

    Raises:
        PruneError: a setting does not exist or is out of bounds, the batches do not fit the model, the target
            is out of reach, pruning was refused, or the model was made in inference mode and has no
            gradients.
    """
    chosen = prune_settings(Macs(0.5) if target is None else target, settings)
    if chosen.rounds > 1:
        raise PruneError(
            "rounds > 1 needs the training between them: extract, train the ticket, and extract from it again"
        )
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_inference():
            raise PruneError(
                f"{name} was made under torch.inference_mode and can have no gradient; "
                "load the model outside of it (use torch.no_grad())"
            )
    device = device_of(model)
    batches, found = batches_of(calibration_data, device, "calibration_data", PruneError)
    labels = found if labels is None else [part.to(device) for part in labels]
    inputs: dict[str, Any] = {"seed": seed}
    if labels and chosen.units != "interpolation":
        inputs["labels"] = labels
    if isinstance(chosen.target, Latency):
        inputs["clock"] = _clock(batches, chosen.target)
    extraction = pruning.extract(model, batches, chosen, **inputs)
    if chosen.repair_steps:
        steps = chosen.repair_steps
        for _ in pruning.repair(
            extraction.ticket,
            model,
            batches,
            steps=steps,
            learning_rate=chosen.repair_learning_rate,
            seed=seed,
        ):
            pass
    return extraction


def _clock(batches: Sequence[Any], target: Latency) -> Callable[[nn.Module], float]:
    if not batches or not isinstance(batches[0], Tensor):
        raise PruneError("a target latency is measured on batches that are one tensor each; use macs")
    item = batches[0][0]
    return lambda model: measure.latency(model, item, target.batch_items).median_seconds
