"""A model that another tool has pruned, fitted to the dense model that it was pruned from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune import pruning
from tpsprune.loop.extract import finish, prepare
from tpsprune.loop.replicas import peers_of, tell_extraction
from tpsprune.loop.unwrap import plain_model
from tpsprune.pruning import Extraction
from tpsprune.recipe.prune import Macs


@torch.inference_mode(False)
def repair(
    pruned: nn.Module | Mapping[str, Tensor],
    like: nn.Module,
    calibration_data: Tensor | Iterable[Any],
    *,
    items: Callable[[Any], int] | None = None,
    also: Sequence[Callable[[Any, Any], Any]] = (),
    example: Any = None,
    seed: int = 0,
    replicated: bool | None = None,
    **settings: Any,
) -> Extraction:
    """Fit a model that another tool has pruned to the dense model that it was pruned from, without labels.

    The units that it kept are found by their weights; the ticket has those, with weights fitted to the dense
    model's outputs layer by layer, and is then distilled from it as one of ``tpsprune.extract`` is. A note
    has the errors of both on calibration data held out.

    >>> import torch, tpsprune
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> dense = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> pruned = {  # as any other tool leaves it: every other unit
    ...     "0.weight": dense[0].weight[::2],
    ...     "0.bias": dense[0].bias[::2],
    ...     "2.weight": dense[2].weight[:, ::2],
    ...     "2.bias": dense[2].bias,
    ... }
    >>> repaired = tpsprune.repair(pruned, dense, torch.randn(512, 8), quality="fast")
    >>> repaired.plan.groups[0].kept == tuple(range(0, 32, 2))
    True

    Args:
        pruned: the smaller model, or its state dict: the dense model's tensors under the same names, sliced.
            It is not changed; what training made of its weights since is not used.
        like: the dense model; not changed.
        calibration_data: as ``tpsprune.extract`` takes it; so are ``items``, ``also``,
            ``example``, ``seed``, ``replicated`` and settings.

    Raises:
        PruneError: as ``tpsprune.extract``; the units of the pruned model are not found in the dense one; or
            it errs no more as it is.

    Cost: as ``tpsprune.extract``, and a second walk.
    """
    state = plain_model(pruned).state_dict() if isinstance(pruned, nn.Module) else dict(pruned)
    peers = peers_of([like, pruned], replicated, "repair")
    prepared = peers.together(
        lambda: prepare(
            like, calibration_data, Macs(0.5), settings, items, also, None, seed, None, example, peers
        )
    )

    def make() -> Extraction:
        device = next(iter(prepared.model.state_dict().values())).device
        moved = {name: each.detach().to(device) for name, each in state.items()}
        found, _ = pruning.refit_pruned(moved, prepared.model, prepared.batches, prepared.settings)
        return finish(found, prepared)

    return tell_extraction(peers, prepared.model, make)
