"""The extraction in somebody's own loop: a model and some batches in, a smaller model out; no recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune import measure, pruning
from tpsprune.data.dataset import batches_of
from tpsprune.errors import PruneError
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
    >>> again = tpsprune.replay(model, ticket.plan)  # the plan carried out on other weights, nothing folded
    >>> tuple(again[2].weight.shape)
    (4, 16)

    Args:
        model: not changed, whatever happens: mode, flags, devices and number types too.
        calibration_data: what the model is shown, a few hundred items or more, prepared as for evaluation. A
            tensor or a tuple goes in by position, a mapping by keyword. A *list*, as a ``DataLoader`` yields
            it, is inputs and, last, labels. A single tensor is all the items at once and is split. All of it
            is kept in memory: take a part of a long loader with ``itertools.islice``.
        target: ``Macs``, ``Params``, ``Latency``, ``Tolerance`` or ``Widths``; half the multiply-accumulates
            where none is given.
        labels: one tensor a batch; only ``units="taylor"`` looks at them. Those of list batches are found.
        seed: of ``units="random"`` and of the order of items while healing.
        settings: the fields of ``[prune]`` in a recipe (``ignored_layers``, ``round_to``, ``fold``,
            ``repair_steps``, ...).

    Returns:
        The ticket, its plan, the change of every group, what was left alone and why.

    Raises:
        PruneError: a setting is not known or out of bounds, the batches do not fit the model, the target is
            out of reach, pruning was refused, or the model was made in inference mode and has no gradients.
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
                "load the model outside of it (torch.no_grad() would do)"
            )
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    probe, found = batches_of(calibration_data, device, "calibration_data", PruneError)
    labels = found if labels is None else [part.to(device) for part in labels]
    asked: dict[str, Any] = {"seed": seed}
    if labels and chosen.units != "interpolation":
        asked["labels"] = labels
    if isinstance(chosen.target, Latency):
        asked["clock"] = _clock(probe, chosen.target)
    extraction = pruning.extract(model, probe, chosen, **asked)
    if chosen.repair_steps:
        steps = chosen.repair_steps
        for _ in pruning.repair(
            extraction.ticket, model, probe, steps=steps, learning_rate=chosen.repair_learning_rate, seed=seed
        ):
            pass
    return extraction


def _clock(probe: Sequence[Any], target: Latency) -> Callable[[nn.Module], float]:
    if not probe or not isinstance(probe[0], Tensor):
        raise PruneError("a target latency is measured on batches that are one tensor each; macs would do")
    item = probe[0][0]
    return lambda model: measure.latency(model, item, target.batch_items).median_seconds
