"""Accuracy straight after the cut: every method on one trained net."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import nn

from benchmarks.one_shot_folding import folded
from benchmarks.one_shot_methods import FOLDING, Method, method_of
from benchmarks.one_shot_rows import Row
from benchmarks.zoo.tasks import TASKS
from benchmarks.zoo.trained import Calibration, accuracy, sample_calibration, trained
from tpsprune.errors import PruneError
from tpsprune.pruning import extract

DENSE = "dense"
TEST_ITEMS = 2000
"""Standard error of an accuracy of 0.9: 0.007; that of a difference on the same items is smaller."""
Key = tuple[str, int, str, float]


def cut_rows(keys: list[Key]) -> Iterator[Row]:
    """Yield a row for each key of one net and seed, the net trained first if it is not in the cache."""
    name, seed = keys[0][:2]
    task = TASKS[name]
    model = trained(task, seed)
    seen = sample_calibration(task, seed)
    for net, number, key, share in keys:
        started = time.perf_counter()
        if key == DENSE:
            score = accuracy(task, model, TEST_ITEMS)
            yield Row(net=net, seed=number, method=key, share=share, score=score, macs_share=1.0)
            continue
        try:
            ticket, macs_share = cut(model, seen, method_of(key), share)
        except PruneError as refusal:
            yield Row(net=net, seed=number, method=key, share=share, problem=str(refusal))
            continue
        except Exception as fault:  # noqa: BLE001 - one method's fault must not end an hour's benchmark
            yield Row(
                net=net, seed=number, method=key, share=share, problem=f"{type(fault).__name__}: {fault}"
            )
            continue
        seconds = time.perf_counter() - started
        yield Row(
            net=net,
            seed=number,
            method=key,
            share=share,
            score=accuracy(task, ticket, TEST_ITEMS),
            macs_share=macs_share,
            seconds=seconds,
        )


def cut(model: nn.Module, seen: Calibration, method: Method, share: float) -> tuple[nn.Module, float]:
    """Cut one model by one method; labels go only to the measure that cannot do without."""
    if method.units == FOLDING:
        return folded(model, seen.batches, share)
    labels = seen.labels if method.wants_labels else None
    found = extract(model, seen.batches, method.settings(share), labels=labels)
    return found.ticket, found.macs_share
