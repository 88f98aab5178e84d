"""Randomness that a resumed run repeats: order and augmentation from (seed, position), else from state."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["augmentation_generator", "epoch_order", "load_random_state", "random_state"]

_ORDER, _AUGMENT = 1, 2


def epoch_order(items: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which epoch number ``epoch`` visits ``items`` items; depends on nothing else."""
    return torch.randperm(items, generator=_generator(seed, _ORDER, epoch))


def augmentation_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of one step's augmentation; depends on nothing but seed and step."""
    return _generator(seed, _AUGMENT, step)


def random_state() -> dict[str, Tensor]:
    """Return the state of PyTorch's own generators (dropout draws from them), one tensor each."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda.{index}": item for index, item in enumerate(torch.cuda.get_rng_state_all())}
    return state


def load_random_state(state: dict[str, Tensor]) -> None:
    """Put PyTorch's generators back to what ``random_state`` returned, but for GPUs that are not here."""
    torch.set_rng_state(state["cpu"])
    for name, item in state.items():
        index = int(name.removeprefix("cuda.")) if name.startswith("cuda.") else None
        if index is not None and index < torch.cuda.device_count():
            torch.cuda.set_rng_state(item, index)


def _generator(seed: int, purpose: int, position: int) -> torch.Generator:
    # Odd multipliers keep distinct (seed, purpose, position) distinct modulo 2^63 for all practical runs.
    mixed = (
        seed * 6364136223846793005 + purpose * 1442695040888963407 + position * 2862933555777941757
    ) % 2**63
    return torch.Generator().manual_seed(mixed)
