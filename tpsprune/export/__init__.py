"""The ticket as something to hand on: a bundle of one or more formats that proves itself whole."""

from tpsprune.export.bundle import (
    CARD,
    Bundle,
    check_free,
    new_folder,
    read_bundle,
    seal,
    stamps_in,
    write_card,
    write_description,
    write_ticket,
)
from tpsprune.export.capture import Answers, answers_of
from tpsprune.export.hugging_face import HuggingFace, is_pretrained
from tpsprune.export.onnx_graph import Onnx
from tpsprune.export.program import TorchExport

__all__ = [
    "CARD",
    "Answers",
    "Bundle",
    "HuggingFace",
    "Onnx",
    "TorchExport",
    "answers_of",
    "check_free",
    "is_pretrained",
    "new_folder",
    "read_bundle",
    "seal",
    "stamps_in",
    "write_card",
    "write_description",
    "write_ticket",
]
