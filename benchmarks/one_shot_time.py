"""How long an extraction takes and how much memory it holds: ResNet-50 at 224², 256 calibration images.

python -m benchmarks.one_shot_time [IMAGES]      # one line of JSON; a process of its own, for its memory
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from typing import Any

import torch

from benchmarks.zoo.photos import photographs
from benchmarks.zoo.resnet50 import ResNet50, settled
from benchmarks.zoo.trained import batches_of
from tpsprune.data.photographs import crops
from tpsprune.pruning import extract
from tpsprune.recipe.prune import Macs, Prune

BATCH_ITEMS = 32
SETTLING_IMAGES = 32


def measured(images: int, device: str) -> dict[str, Any]:
    """Return seconds of the calibration's forward passes, of the extraction and its parts, and peak bytes."""
    torch.manual_seed(0)
    model = ResNet50().to(device)
    calibration = [part.to(device) for part in batches_of(crops(photographs(), images, 0, 0), BATCH_ITEMS)]
    settled(model, calibration[: max(1, SETTLING_IMAGES // BATCH_ITEMS)])
    before = _peak_bytes()
    forward = min(_forward_seconds(model, calibration) for _ in range(2))
    after_forward = _peak_bytes()
    started = time.perf_counter()
    extraction = extract(model, calibration, Prune(target=Macs(0.5), round_to=1))
    _wait(device)
    seconds = time.perf_counter() - started
    return {
        "images": images,
        "device": device,
        "threads": torch.get_num_threads(),
        "probe_forward_seconds": forward,
        "extraction_seconds": seconds,
        "ratio": seconds / forward,
        "macs_share": extraction.macs_share,
        "peak_bytes_loaded": before,
        "peak_bytes_forward": after_forward,
        "peak_bytes": _peak_bytes(),
        "parts": _parts(extraction),
    }


def _parts(extraction: Any) -> dict[str, float]:
    times = getattr(extraction, "times", None)
    return dataclasses.asdict(times) if dataclasses.is_dataclass(times) else {}  # type: ignore[arg-type]


def _forward_seconds(model: torch.nn.Module, calibration: list[torch.Tensor]) -> float:
    started = time.perf_counter()
    with torch.no_grad():
        for batch in calibration:
            model(batch)
    _wait(str(calibration[0].device))
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _peak_bytes() -> int:
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    print(json.dumps(measured(int(sys.argv[1]) if len(sys.argv) > 1 else 256, chosen)))
