"""How to load each format of an exported ticket, in three lines, and what loading it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tpsprune.report.card_fields import field, quoted

__all__ = ["loading_lines"]

_WORDS: Final = {
    "safetensors": (
        "safetensors (`ticket.safetensors`, `plan.json`, `recipe.toml`)",
        "Builds the model from the recipe, cuts it by the plan and fills it. Every hash is checked first; "
        "nothing is unpickled.",
    ),
    "torch-export": (
        "torch.export (`ticket.pt2`)",
        "Needs torch alone. **`torch.export.load` unpickles what a file holds as a pickle, loads compiled "
        "code in it, and evaluates its expressions of sizes, all of which can run code**: this file was "
        "written with neither pickles nor compiled code, a changed one need not be. Compare its SHA-256 "
        "with the one below, and load only what you trust. The batch is free.",
    ),
    "onnx": (
        "ONNX (`ticket.onnx`)",
        "For onnxruntime and other runtimes; nothing in it runs as Python. The batch is free.",
    ),
    "hf": (
        "Hugging Face (`config.json`, `model.safetensors`)",
        "The architecture of the transformers library at this ticket's widths; no tpsprune and no pickle.",
    ),
}
_BUILT_BY: Final = {
    "custom": "The model of this recipe is `custom`: `trust_code=True` lets loading import and call what "
    "`recipe.toml` names as its factory. Read it first.",
    **{
        library: f"The model is built by {library}: `pip install 'tpsprune[{library}]'`."
        for library in ("timm", "torchvision", "transformers")
    },
}


def loading_lines(
    raw: Mapping[str, Any], formats: Mapping[str, Sequence[str]], *, kind: str, architecture: str
) -> list[str]:
    """Return a passage for each format: its files, three lines of Python, and what they do.

    ``kind`` is that of the recipe's model, which loading from safetensors builds anew.
    """
    lines = ["`FOLDER` is the one this card lies in.", ""]
    for name in formats:
        title, words = _WORDS[name]
        lines += [
            f"### {title}",
            "",
            "```python",
            *_code(name, raw, architecture, kind),
            "```",
            "",
        ]
        lines += [words, ""]
        if name == "safetensors" and kind in _BUILT_BY:
            lines += [_BUILT_BY[kind], ""]
    return lines[:-1]


def _code(name: str, raw: Mapping[str, Any], architecture: str, kind: str) -> list[str]:
    called, whole, arrays = _inputs(raw)
    if name == "safetensors":
        trust = ", trust_code=True" if kind == "custom" else ""
        return [
            "import torch, tpsprune",
            f'model = tpsprune.load("FOLDER"{trust})',
            f"scores = model({called}){'.logits' if kind == 'transformers' else ''}",
        ]
    if name == "torch-export":
        return [
            "import torch",
            'program = torch.export.load("FOLDER/ticket.pt2").module()',
            f"scores = program({whole})",
        ]
    if name == "onnx":
        return [
            "import torch, onnxruntime",
            'session = onnxruntime.InferenceSession("FOLDER/ticket.onnx")',
            f'scores = session.run(["scores"], {{{arrays}}})[0]',
        ]
    return [
        "import torch, transformers",
        f'model = transformers.{architecture}.from_pretrained("FOLDER")',
        f"scores = model({called}).logits",
    ]


def _inputs(raw: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return expressions for a batch of two items, as far as the run recorded what they are.

    As a model is called with them, as the one argument of a program, and as the arrays of a graph by name.
    """
    if parts := field(raw, "task", "parts"):
        names, made = [part["name"] for part in parts], [_part(part) for part in parts]
        if any(names):
            named = ", ".join(f"{quoted(name)}: {each}" for name, each in zip(names, made, strict=True))
            called, whole = f"**{{{named}}}", f"{{{named}}}"
        else:
            names = [f"input_{place}" for place in range(len(parts))]
            called = ", ".join(made)
            whole = f"({called},)"
        arrays = ", ".join(f"{quoted(name)}: {each}.numpy()" for name, each in zip(names, made, strict=True))
        return called, whole, arrays
    one = _one(field(raw, "task", "input_kind"), field(raw, "task", "input_shape"))
    return one, one, f"session.get_inputs()[0].name: {one}.numpy()"


def _one(kind: Any, shape: Any) -> str:
    if not shape or kind not in {"image", "tokens", "vector"}:
        return "batch"
    sizes = ", ".join(map(str, shape))
    if kind == "tokens":
        return f"torch.zeros(2, {sizes}, dtype=torch.int64)"
    return f"torch.zeros(2, {sizes})"


def _part(part: Mapping[str, Any]) -> str:
    """Return one tensor of several: whole numbers as high as the data had them, which a mask lets through."""
    sizes = ", ".join(map(str, (2, *part["shape"])))
    if part["dtype"] == "float32":
        return f"torch.zeros({sizes})"
    value = "True" if part["dtype"] == "bool" else part["highest"]
    return f"torch.full([{sizes}], {value})"
