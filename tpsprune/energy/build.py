"""From the recipe's section to a meter."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from tpsprune.energy.fake import FakeMeter
from tpsprune.energy.meter import AbstractMeter
from tpsprune.energy.none import NoMeter
from tpsprune.energy.replay import ReplayMeter
from tpsprune.errors import MeterError
from tpsprune.recipe.train import Energy

__all__ = ["build"]


def build(settings: Energy, attempt: int) -> AbstractMeter:
    """Make the meter that ``[energy]`` asks for; ``attempt`` counts resumes from 0.

    The codecarbon meter takes one to three seconds here, once, to find out about the machine.

    Raises:
        MeterError: codecarbon cannot meter here, or would not meter what the recipe says; or there are no
            windows to replay.
    """
    match settings.meter:
        case "codecarbon":
            from tpsprune.energy.codecarbon_meter import CodecarbonMeter

            return CodecarbonMeter(
                tracking=settings.tracking,
                pue=settings.pue,
                attempt=attempt,
            )
        case "fake":
            return FakeMeter(
                cpu_watts=settings.fake_cpu_watts,
                ram_watts=settings.fake_ram_watts,
                gpu_watts=settings.fake_gpu_watts,
                window_seconds=settings.fake_window_seconds,
                noise_share=settings.fake_noise_share,
                seed=settings.fake_seed,
                fault=settings.fake_fault,
                fault_window=settings.fake_fault_window,
                pue=settings.pue,
                attempt=attempt,
            )
        case "replay":
            if settings.replay is None:
                raise MeterError("energy.replay: meter 'replay' needs the energy.jsonl of a run")
            return ReplayMeter(Path(settings.replay), attempt=attempt)
        case "none":
            return NoMeter(attempt=attempt)
        case _ as other:
            assert_never(other)
