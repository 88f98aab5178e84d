"""torchvision beside a torch that was built without what torchvision's own binary needs.

The torchvision that PyPI serves is built against CUDA. Beside a CPU build of torch its binary does not load
(libcudart and two more libraries are missing), torchvision swallows that, and a line further on registers a
fake for the operators ``nms`` and ``qnms`` that the binary would have declared: ``RuntimeError: operator
torchvision::nms does not exist``. The models need none of those operators. Where the plain import fails, and
only there, the two are declared, without being defined, and it is imported again; calling one still fails.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, Final

import torch

__all__ = ["help_torchvision", "import_torchvision"]

SCHEMAS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision, with its two missing operators declared first where it does not import otherwise.

    Raises:
        ImportError, RuntimeError, OSError: it is not there, or does not import even so.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return torchvision  # type: ignore[no-any-return]
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    # What is declared here goes as this object goes: it is kept.
    declare: Any = torch.library.Library
    library = declare("torchvision", "FRAGMENT")
    _declared.append(library)
    for schema in SCHEMAS:
        library.define(schema)
    return importlib.import_module("torchvision")


def help_torchvision() -> None:
    """Import torchvision before a library that would; where it is not installed, that does without it."""
    try:
        import_torchvision()
    except ModuleNotFoundError:
        return
