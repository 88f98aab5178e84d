"""Somebody else's model: EfficientNet-Lite0 on crops of real photographs.

There is no ImageNet here, so what is measured is agreement: how often the cut model's first class is the
dense model's, and the mean squared error of the scores over their variance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.one_shot_cuts import cut
from benchmarks.one_shot_methods import MENDS, Method, default_widths, method_of
from benchmarks.one_shot_rows import Row
from benchmarks.zoo.lite0 import lite0
from benchmarks.zoo.photos import photographs
from benchmarks.zoo.trained import Calibration, batches_of
from tpsprune.data.photographs import crops

NET = "lite0"
BATCH_ITEMS = 32


def foreign_methods() -> list[Method]:
    """Return what is tried: two ways of sharing out widths, and magnitude in its three states."""
    ours = [Method("interpolation", widths, "fold") for widths in dict.fromkeys((default_widths(), "greedy"))]
    return [*ours, *(Method("magnitude", "uniform", mend) for mend in MENDS)]


def foreign_rows(
    keys: list[tuple[str, int, str, float]], calibration_items: int, test_items: int
) -> Iterator[Row]:
    """Yield a row for each key; fitted on left halves of photographs, tried on right halves.

    Raises:
        Missing: the weights are not here.
    """
    model = lite0()
    photos = photographs()
    seen = batches_of(crops(photos, calibration_items, 0, 0), BATCH_ITEMS)
    unseen = batches_of(crops(photos, test_items, 1, 1), BATCH_ITEMS)
    dense = _scores(model, unseen)
    for net, seed, key, share in keys:
        started = time.perf_counter()
        try:
            extraction = cut(model, Calibration(seen, []), method_of(key), share)
        except Exception as fault:  # noqa: BLE001 - one fault must not end an hour's benchmark
            yield Row(net=net, seed=seed, method=key, share=share, problem=f"{type(fault).__name__}: {fault}")
            continue
        seconds = time.perf_counter() - started
        score, error = agreement(_scores(extraction.ticket, unseen), dense)
        yield Row(
            net=net,
            seed=seed,
            method=key,
            share=share,
            score=score,
            error=error,
            macs_share=extraction.macs_share,
            seconds=seconds,
        )


def agreement(scores_nc: Tensor, dense_nc: Tensor) -> tuple[float, float]:
    """Return the share of items of equal first class, and the squared error over the dense variance.

    Both are means over the n items; variance is about each class's mean over the items.
    """
    same = (scores_nc.argmax(1) == dense_nc.argmax(1)).double().mean().item()
    spread = (dense_nc - dense_nc.mean(0)).square().mean()
    return same, ((scores_nc - dense_nc).square().mean() / spread).item()


def _scores(model: nn.Module, batches: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in batches])
