"""Format ``onnx``: the ticket for every runtime that reads ONNX."""

from __future__ import annotations

import contextlib
import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor, nn

from tpsprune.errors import ArtifactError
from tpsprune.export.torch_export import Predictor, capture, first_cause, names_of
from tpsprune.numerics.trees import tensors_of

GRAPH: Final = "ticket.onnx"
SCORES: Final = "scores"
ONE_FILE_BYTES: Final = 1_900_000_000
"""More is written to a second file: the graph's own file cannot grow beyond 2 GiB."""
_NEEDED: Final = ("onnx", "onnxruntime", "onnxscript")


@final
class Onnx:
    """``ticket.onnx``, batch left open, checked by onnx and run by onnxruntime.

    Another library adds the same numbers in another order, and folds what is constant: sums of a thousand
    float32 products differ by 1e-5 of their size and more, through a few dozen layers. Differences of at
    most 1e-4 of the largest score pass; a wrong operator or a transposed weight makes ones of its size.
    """

    name: ClassVar[str] = "onnx"
    tolerance_share: ClassVar[float] = 1e-4

    def refuse(self, model: nn.Module) -> None:  # noqa: ARG002
        """Refuse to begin without the libraries.

        Raises:
            ArtifactError: names those that are missing, and the line that installs them.
        """
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            raise ArtifactError(
                f"format '{self.name}' needs {', '.join(missing)}, not installed here: "
                "pip install 'tpsprune[onnx]'"
            )

    def write(self, folder: Path, model: nn.Module, example: Any) -> tuple[str, ...]:
        """Translate the captured model, write it, and have it checked.

        Raises:
            ArtifactError: the model cannot be captured, has no translation, or onnx finds a fault.
        """
        import onnx

        program = capture(model, example, self.name)
        path = folder / GRAPH
        try:
            # The exporter prints what it does.
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                translated = torch.onnx.export(
                    program,
                    dynamo=True,
                    verbose=False,
                    input_names=names_of(example),
                    output_names=[SCORES],
                )
                assert translated is not None, "without a file's name the program is returned"
                _without_sources(translated.model)
                weights = sum(each.numel() * each.element_size() for each in model.state_dict().values())
                translated.save(path, external_data=weights > ONE_FILE_BYTES)
            onnx.checker.check_model(str(path), full_check=True)
        except OSError:
            raise
        except Exception as error:  # a translation can fail in as many ways as there are operators
            raise ArtifactError(
                f"{self.name}: the ticket cannot be translated: {first_cause(error)}"
            ) from error
        return tuple(sorted(each.name for each in folder.glob(f"{GRAPH}*")))

    def reload(self, folder: Path) -> Predictor:
        """Load the graph into onnxruntime, on the CPU, one thread: the same outputs each time.

        Raises:
            ArtifactError: the runtime does not take it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        path = folder / GRAPH
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its kinds of error have no common one of their own
            raise ArtifactError(
                f"{self.name}: onnxruntime does not load {path}: {first_cause(error)}"
            ) from error
        names = [each.name for each in session.get_inputs()]

        def predict(batch: Any) -> Tensor:
            inputs = dict(zip(names, (each.numpy() for each in tensors_of(batch)), strict=True))
            return torch.from_numpy(session.run([SCORES], inputs)[0])

        return predict


def _without_sources(model: Any) -> None:
    """Take out of the graph where in whose files its nodes come from, and notes of the translation."""
    model.metadata_props.clear()
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
