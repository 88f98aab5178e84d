"""What the benchmark is run on: for each net its data, its shape and how it is trained.

``build`` draws weights from torch's global generator, as the package's own models do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.zoo.places import cifar10_file, fashion_folder, mnist_folder
from benchmarks.zoo.transformers import TokenTransformer, Vit
from tpsprune import models
from tpsprune.recipe.task import (
    CnnModel,
    Data,
    DigitsData,
    IdxData,
    ImageFolderData,
    ModularData,
    ResNetModel,
)
from tpsprune.recipe.train import Train
from tpsprune.records import TaskFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A net, its data, how it is trained, and how many training items its calibration holds."""

    name: str
    title: str
    data: Callable[[], Data]
    build: Callable[[TaskFacts], nn.Module]
    train: Train
    calibration_items: int = 1024


def _cnn(*widths: int) -> Callable[[TaskFacts], nn.Module]:
    return lambda facts: models.build(CnnModel(widths=widths), facts)


def _resnet(depth: int) -> Callable[[TaskFacts], nn.Module]:
    # mypy cannot see that every depth given below is one of the three there are.
    return lambda facts: models.build(ResNetModel(depth=depth), facts)  # type: ignore[arg-type]


def _vit(facts: TaskFacts) -> nn.Module:
    channels, height, width = facts.input_shape
    return Vit((channels, height, width), 4, 64, 4, 4, facts.classes)


def _sequence(facts: TaskFacts) -> nn.Module:
    assert facts.vocabulary is not None
    return TokenTransformer(facts.vocabulary, 64, 2, 4, facts.classes)


def _cifar(limit: int | None) -> Callable[[], Data]:
    return lambda: ImageFolderData(path=cifar10_file(), train_limit=limit, augment="crop-flip")


_ADAMW = Train(epochs=6, learning_rate=5e-3, weight_decay=0.05, threads=1)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="digits",
            title="CNN 32-64-64 on scikit-learn's digits, 30 epochs",
            data=DigitsData,
            build=_cnn(32, 64, 64),
            train=Train(epochs=30, batch_size=64, learning_rate=5e-3, threads=1),
        ),
        Task(
            name="fashion",
            title="CNN 32-64-64-64 on Fashion-MNIST, 20,000 images, 6 epochs",
            data=lambda: IdxData(folder=fashion_folder(), train_limit=20_000),
            build=_cnn(32, 64, 64, 64),
            train=_ADAMW,
        ),
        Task(
            name="resnet8",
            title="ResNet-8 on CIFAR-10 (JPEG), 20,000 images, 8 epochs",
            data=_cifar(20_000),
            build=_resnet(8),
            train=Train(epochs=8, learning_rate=5e-3, weight_decay=0.05, threads=1),
        ),
        Task(
            name="mnist",
            title="CNN 32-64-64-64 on MNIST, 20,000 images, 4 epochs",
            data=lambda: IdxData(folder=mnist_folder(), train_limit=20_000),
            build=_cnn(32, 64, 64, 64),
            train=Train(epochs=4, learning_rate=5e-3, weight_decay=0.05, threads=1),
        ),
        Task(
            name="vit",
            title="ViT, patch 4, width 64, 4 layers, 4 heads, Fashion-MNIST, 20,000 images, 12 epochs",
            data=lambda: IdxData(folder=fashion_folder(), train_limit=20_000),
            build=_vit,
            train=Train(epochs=12, learning_rate=2e-3, weight_decay=0.05, threads=1),
        ),
        Task(
            name="modular",
            title="two-layer transformer, width 64, 4 heads, on addition modulo 59, 200 epochs",
            data=lambda: ModularData(modulus=59, train_share=0.8),
            build=_sequence,
            # Small batches and four fifths of the pairs: it generalises within seconds, where the full batch
            # and half of them take thousands of steps.
            train=Train(
                epochs=200,
                batch_size=256,
                learning_rate=2e-3,
                weight_decay=1.0,
                betas=(0.9, 0.98),
                threads=1,
            ),
        ),
        Task(
            name="resnet20-short",
            title="ResNet-20 on CIFAR-10 (JPEG), 20,000 images, 15 epochs",
            data=_cifar(20_000),
            build=_resnet(20),
            train=Train(epochs=15, learning_rate=5e-3, weight_decay=0.05, threads=1),
        ),
        Task(
            name="resnet20",
            title="ResNet-20 on CIFAR-10 (JPEG), 60 epochs (meant for a GPU)",
            data=_cifar(None),
            build=_resnet(20),
            train=Train(
                epochs=60,
                optimizer="sgd",
                learning_rate=0.1,
                weight_decay=5e-4,
                warmup_share=0.2,
                label_smoothing=0.1,
            ),
            calibration_items=2048,
        ),
    )
}
