"""``[train]``: the optimiser, its schedule, and the numbers it is run in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from tpsprune.recipe.bounds import STRICT, AtLeastZero, Count, Positive, Share

__all__ = ["Train"]

Momentum = Annotated[float, Interval(ge=0.0, lt=1.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """How the model is trained; ``epochs`` is the whole budget, before and after the cut."""

    epochs: Count
    batch_size: Count | Literal["full"] = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: AtLeastZero = 0.01
    momentum: Momentum = 0.9
    """SGD's momentum (Nesterov's form)."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """AdamW's two averaging factors."""
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup_share: Share = 0.1
    """Part of the schedule over which the learning rate rises from near zero."""
    label_smoothing: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0
    grokfast_gain: AtLeastZero = 0.0
    """Grokfast's λ: how much of the gradient's slow part is added to it; 0 for none."""
    grokfast_memory: Momentum = 0.98
    """Grokfast's α: what the slow part keeps of itself from step to step."""
    clip_norm: Positive | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where the device has fast bfloat16, else float32."""
    memory_format: Literal["auto", "contiguous", "channels-last"] = "auto"
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """Processor threads; without it as many as there are cores. Runs repeat bit for bit at equal threads."""
    checkpoint_seconds: AtLeastZero = 20.0
    """Least time between two checkpoints for ``--resume``; 0 writes one at every reading."""
    __pydantic_config__: ClassVar[Any] = STRICT
