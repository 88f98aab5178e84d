"""Real speed: time of a forward pass, ticket beside dense, next to their multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.one_shot_cuts import cut
from benchmarks.one_shot_methods import Method, default_widths
from benchmarks.one_shot_rows import Row
from benchmarks.zoo.tasks import TASKS
from benchmarks.zoo.trained import sample_calibration, trained
from tpsprune.measure import paired_latency

BATCHES = (1, 64)


def devices() -> tuple[str, ...]:
    """Return where there is something to time on."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def speed_method(device: str, batch: int) -> str:
    """Return the name in the journal."""
    return f"speed:{device}:{batch}"


def speed_rows(keys: list[tuple[str, int, str, float]], seconds: float) -> Iterator[Row]:
    """Yield a row for each key of one net; ``score`` is the ticket's median time over the dense model's."""
    name, seed = keys[0][:2]
    task = TASKS[name]
    model = trained(task, seed)
    seen = sample_calibration(task, seed)
    for share in dict.fromkeys(key[3] for key in keys):
        try:
            extraction = cut(model, seen, Method("interpolation", default_widths(), "fold"), share)
        except Exception as fault:  # noqa: BLE001 - one fault must not end an hour's benchmark
            for net, number, key, wanted in keys:
                if wanted == share:
                    problem = f"{type(fault).__name__}: {fault}"
                    yield Row(net=net, seed=number, method=key, share=share, problem=problem)
            continue
        for net, number, key, wanted in keys:
            if wanted != share:
                continue
            _, device, batch = key.split(":")
            item = seen.batches[0][0].to(device)
            dense, ticket = paired_latency(
                model.to(device), extraction.ticket.to(device), item, int(batch), seconds=seconds
            )
            yield Row(
                net=net,
                seed=number,
                method=key,
                share=share,
                score=ticket.median_seconds / dense.median_seconds,
                macs_share=extraction.macs_share,
                seconds=ticket.median_seconds,
            )
        model.to("cpu")
