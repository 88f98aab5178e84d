"""Tensors of a file and tensors of a model: by name, in order, and tied ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import ArtifactError
from tpsprune.runs.tensors import save_tensors
from tpsprune.runs.weights import fitted, read_state, sha256_of


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"theirs.{rank}": tensor for rank, tensor in enumerate(state.values())}


class Tied(nn.Module):
    """A token model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def test_in_order_names_do_not_matter() -> None:
    theirs = {name: t for name, t in net().state_dict().items() if "tracked" not in name}
    filled = fitted(renamed(theirs), net().state_dict(), "F", "order")
    assert all(torch.equal(filled[name], tensor) for name, tensor in theirs.items())
    assert filled["1.num_batches_tracked"] == 0


def test_in_order_every_shape_is_compared() -> None:
    theirs = renamed({name: t for name, t in net().state_dict().items() if "tracked" not in name})
    theirs["theirs.0"] = torch.ones(5, 4)
    theirs["theirs.7"] = torch.ones(4)
    words = (
        r"^F does not fit in order: tensor 1 is theirs.0, \[5, 4\], in the file and 0.weight, \[6, 4\], in "
        r"the recipe's model \(and 1 more\)$"
    )
    with pytest.raises(ArtifactError, match=words):
        fitted(theirs, net().state_dict(), "F", "order")


def test_in_order_as_many_tensors_are_needed() -> None:
    theirs = renamed({name: t for name, t in net().state_dict().items() if "tracked" not in name})
    del theirs["theirs.7"]
    with pytest.raises(ArtifactError, match=r"in order: the file holds 7 tensors, the recipe's model 8$"):
        fitted(theirs, net().state_dict(), "F", "order")


def test_safetensors_keeps_no_order(tmp_path: Path) -> None:
    save_tensors(tmp_path / "w.safetensors", net().state_dict(), {})
    with pytest.raises(ArtifactError, match=r"^here .*w.safetensors is read as safetensors, .* torch.save"):
        read_state(tmp_path / "w.safetensors", "here", "order")


def test_a_tensor_that_the_model_ties_to_another_need_not_be_in_the_file() -> None:
    model, table = Tied(), torch.arange(28.0).reshape(7, 4)
    state = fitted({"embedding.weight": table}, model.state_dict(), "F")
    model.load_state_dict(state)
    assert torch.equal(model.head.weight, table)
    assert model.head.weight is model.embedding.weight
    model.head.weight = nn.Parameter(torch.ones(7, 4))
    with pytest.raises(ArtifactError, match=r"F does not fit: head.weight is missing$"):
        fitted({"embedding.weight": table}, model.state_dict(), "F")


def test_messages_begin_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^task.model.weights: .*none.pt is not there$"):
        read_state(tmp_path / "none.pt", "task.model.weights:")
    with pytest.raises(ArtifactError, match=r"^task.model.weights: .* is a folder$"):
        read_state(tmp_path, "task.model.weights:")


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    assert sha256_of(tmp_path / "w") == hashlib.sha256(b"weights").hexdigest()
