"""A trained net: read from the cache, or trained once and put there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.zoo import places
from benchmarks.zoo.tasks import Task
from tpsprune import data
from tpsprune.data import Dataset
from tpsprune.runs.tensors import load_tensors, save_tensors
from tpsprune.training import (
    Execution,
    choose_device,
    evaluate,
    fit,
    make_optimizer,
    prepare_process,
    steps_per_epoch,
)

BATCH_ITEMS = 256
_datasets: dict[str, Dataset] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Prepared training batches without augmentation, and their labels for the measures that need them."""

    batches: list[Tensor]
    labels: list[Tensor]


def dataset(task: Task) -> Dataset:
    """Return the task's data, read once a process.

    Raises:
        Missing: they are not on this machine.
    """
    if task.name not in _datasets:
        _datasets[task.name] = data.load(task.data())
    return _datasets[task.name]


def fresh(task: Task, seed: int) -> nn.Module:
    """Return the untrained net of a seed, in training mode."""
    torch.manual_seed(seed)
    return task.build(dataset(task).facts)


def trained(task: Task, seed: int, *, device: str = "auto") -> nn.Module:
    """Return the trained net of a seed on the CPU, evaluating; trained anew where its task changed."""
    model = fresh(task, seed)
    file = weights_file(task, seed)
    # Nets from before there was a temperature were trained at 1.
    wanted = {"task": task.title, "train": repr(task.train).replace(", temperature=1.0", "")}
    tensors, found = load_tensors(file) if file.is_file() else ({}, {})
    if not wanted.items() <= found.items():
        started = time.perf_counter()
        _train(task, model, seed, choose_device(device))
        file.parent.mkdir(parents=True, exist_ok=True)
        seconds = time.perf_counter() - started
        save_tensors(file, model.state_dict(), {**wanted, "seconds": f"{seconds:.0f}"})
        print(f"trained {file.stem} in {seconds:.0f} s: {accuracy(task, model):.4f} on test", flush=True)
        return model.eval()
    model.load_state_dict(tensors)
    return model.eval()


def weights_file(task: Task, seed: int) -> Path:
    """Return where the weights of a seed are kept."""
    return places.CACHE / f"{task.name}-{seed}.safetensors"


def sample_calibration(task: Task, seed: int, items: int | None = None) -> Calibration:
    """Return ``items`` training images (or pairs) drawn by ``seed``, in batches of at most 256."""
    held = dataset(task)
    generator = torch.Generator().manual_seed(1000 + seed)
    index = torch.randperm(len(held.train), generator=generator)[: items or task.calibration_items]
    parts = batches_of(index, BATCH_ITEMS)
    return Calibration(
        [held.prepare(held.train.inputs[part]) for part in parts], [held.train.labels[part] for part in parts]
    )


def batches_of(items: Tensor, size: int) -> list[Tensor]:
    """Return the items in their order, at most ``size`` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def accuracy(task: Task, model: nn.Module, items: int | None = None) -> float:
    """Return the share that ``model`` gets right of the test split, or of ``items`` spread evenly over it."""
    held = dataset(task)
    device = next(model.parameters()).device
    execution = Execution(device, None, channels_last=False)
    count = min(items or len(held.test), len(held.test))
    # Image folders are sorted by class: the first few would be of one class.
    test = held.test.at(torch.arange(count) * len(held.test) // count).to(device)
    prepare = held.prepare.to(device)
    return evaluate(model, test.inputs, test.labels, prepare=prepare, execution=execution).accuracy


def _train(task: Task, model: nn.Module, seed: int, device: torch.device) -> None:
    settings = task.train
    prepare_process(settings, seed, device)
    execution = Execution.of(settings, device)
    execution.place(model)
    held = dataset(task).to(device)
    steps = settings.epochs * steps_per_epoch(len(held.train), settings)
    optimizer = make_optimizer(model, settings)
    for _ in fit(
        model,
        optimizer,
        held.train.inputs,
        held.train.labels,
        prepare=held.prepare,
        settings=settings,
        execution=execution,
        seed=seed,
        first_step=0,
        last_step=steps,
        total_steps=steps,
    ):
        pass
    model.to("cpu")
