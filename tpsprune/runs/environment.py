"""What a run was made on, as records keep it: the machine and the versions that figures depend on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from typing import Any, Final

__all__ = ["machine_facts", "versions"]

PACKAGES: Final = ("tpsprune", "torch", "torch-pruning", "codecarbon", "numpy", "ripser", "safetensors")


def machine_facts() -> dict[str, Any]:
    """Return the kind of machine, without a name or address of it."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "python": sys.implementation.name,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
