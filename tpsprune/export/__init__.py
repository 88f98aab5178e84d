"""The ticket as something to hand on: a bundle of one or more formats that proves itself whole."""

from tpsprune.export.bundle import (
    CARD,
    Bundle,
    check_free,
    is_bundle,
    new_folder,
    read_bundle,
    seal,
    stamps_in,
    write_card,
    write_description,
    write_ticket,
)
from tpsprune.export.hugging_face import HuggingFace, auto_class, saves_itself
from tpsprune.export.onnx_graph import Onnx
from tpsprune.export.sharing import share_tensors
from tpsprune.export.torch_export import Predictor, TorchExport, predictor_of

__all__ = [
    "CARD",
    "Bundle",
    "HuggingFace",
    "Onnx",
    "Predictor",
    "TorchExport",
    "auto_class",
    "check_free",
    "is_bundle",
    "new_folder",
    "predictor_of",
    "read_bundle",
    "saves_itself",
    "seal",
    "share_tensors",
    "stamps_in",
    "write_card",
    "write_description",
    "write_ticket",
]
