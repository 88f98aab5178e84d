"""A ticket as an ONNX graph: checked, run by onnxruntime, for batches of any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.export.nets import CALLED, Loud, batch_for, made
from tpsprune.errors import ArtifactError
from tpsprune.export import Onnx, onnx_graph, predictor_of

onnx = pytest.importorskip("onnx", reason="pip install 'tpsprune[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'tpsprune[onnx]'")
pytest.importorskip("onnxscript", reason="pip install 'tpsprune[onnx]'")
FORMAT = Onnx()


INPUTS = {"Convolutions": ["input"], "Pair": ["input_0", "input_1"], "Named": ["ids", "mask"]}


@pytest.mark.parametrize("name", CALLED)
def test_the_graph_computes_nearly_equally_at_every_batch_size_and_has_the_names_of_the_batch(
    tmp_path: Path, name: str
) -> None:
    model = made(name)
    assert FORMAT.write(tmp_path, model, batch_for(name, 2)) == ("ticket.onnx",)
    stored = onnx.load(tmp_path / "ticket.onnx").graph
    assert [each.name for each in stored.input] == INPUTS[name]
    assert [each.name for each in stored.output] == ["scores"]
    assert stored.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch is a name, no number"
    graph = FORMAT.reload(tmp_path)
    for items in (1, 2, 7, 64):
        batch = batch_for(name, items)
        wanted = predictor_of(model)(batch)
        gap = (graph(batch) - wanted).abs().max() / wanted.abs().max()
        assert gap < FORMAT.tolerance_share, items


def test_the_same_model_gives_the_same_bytes_without_a_path(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        FORMAT.write(tmp_path / name, made("Pair"), batch_for("Pair", 2))
    content = (tmp_path / "one" / "ticket.onnx").read_bytes()
    assert content == (tmp_path / "two" / "ticket.onnx").read_bytes()
    assert b".py" not in content


def test_weights_too_large_for_one_file_go_into_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "ONE_FILE_BYTES", 100)
    model = nn.Linear(64, 64).eval()
    example = torch.randn(2, 64)
    assert FORMAT.write(tmp_path, model, example) == ("ticket.onnx", "ticket.onnx.data")
    assert torch.allclose(FORMAT.reload(tmp_path)(example), model(example), atol=1e-5)


def test_a_model_that_cannot_be_captured_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"onnx: torch\.export cannot capture"):
        FORMAT.write(tmp_path, Loud().eval(), torch.randn(2, 5))


class Strange(nn.Module):
    """A model with an operator that ONNX has no word for."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, vectors: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.special.bessel_j0(vectors))
        return scores


def test_an_operator_without_a_translation_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"onnx: the ticket cannot be translated: .*bessel_j0"):
        FORMAT.write(tmp_path, Strange().eval(), torch.randn(2, 5))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_the_runtime_does_not_take_is_reported(tmp_path: Path) -> None:
    (tmp_path / "ticket.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=r"^onnx: onnxruntime does not load .*ticket\.onnx: "):
        FORMAT.reload(tmp_path)
