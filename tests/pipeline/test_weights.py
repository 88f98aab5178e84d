"""Weights from anywhere: what is welcome, and what is refused with the place and what is expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import ArtifactError
from tpsprune.pipeline.load import read_weights
from tpsprune.runs import RunFolder
from tpsprune.runs.tensors import save_tensors


def net(hidden: int = 6) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 3))


def filled(path: Path) -> nn.Module:
    torch.manual_seed(4)
    blank = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    return read_weights(path).fill(blank)


def assert_same(model: nn.Module) -> None:
    expected = net().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in net().state_dict().items()}


def test_a_safetensors_file_fills_the_model(tmp_path: Path) -> None:
    save_tensors(tmp_path / "w.safetensors", net().state_dict(), {})
    assert_same(filled(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda: net().state_dict(),
        lambda: {"state_dict": net().state_dict(), "epoch": 3},
        lambda: {"model": net().state_dict(), "optimizer": {"lr": 0.1}},
        lambda: prefixed("module."),
        lambda: prefixed("_orig_mod.module."),
    ],
    ids=["bare", "state_dict", "model", "data-parallel", "compiled"],
)
def test_a_state_dict_that_torch_saved_fills_the_model(
    tmp_path: Path, wrap: Callable[[], Any], suffix: str
) -> None:
    torch.save(wrap(), tmp_path / f"w{suffix}")
    assert_same(filled(tmp_path / f"w{suffix}"))


def test_a_run_folder_stands_for_its_dense_model(trained: RunFolder) -> None:
    assert read_weights(trained.path).path == trained.dense
    assert read_weights(trained.path).digest == read_weights(trained.dense).digest


def test_a_count_of_batches_that_old_files_lack_is_not_needed(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in net().state_dict().items() if "tracked" not in name}
    save_tensors(tmp_path / "w.safetensors", tensors, {})
    assert_same(filled(tmp_path / "w.safetensors"))


def renamed() -> dict[str, Tensor]:
    tensors = net().state_dict()
    tensors["3.weigth"] = tensors.pop("3.weight")
    return tensors


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            net(hidden=7).state_dict(),
            re.escape("0.weight is [7, 4] in the file and [6, 4] in the recipe's model")
            + r" \(and \d+ more\)",
        ),
        (renamed(), r"3.weight is missing \(did you mean '3.weigth'\?\)"),
        ({**net().state_dict(), "extra": torch.ones(2)}, r"extra is not in the recipe's model$"),
    ],
)
def test_weights_that_do_not_fit_are_reported_by_the_first_tensor(
    tmp_path: Path, tensors: dict[str, Tensor], words: str
) -> None:
    save_tensors(tmp_path / "w.safetensors", tensors, {})
    with pytest.raises(ArtifactError, match=r"w.safetensors does not fit: .*" + words):
        filled(tmp_path / "w.safetensors")


def test_what_is_not_there_or_holds_no_weights_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"--weights .*nothing.pt is not there"):
        read_weights(tmp_path / "nothing.pt")
    with pytest.raises(ArtifactError, match=r"holds no weights; expected a run folder .* or a file$"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w"])
@pytest.mark.parametrize("content", [b"", b"no weights at all, just words"], ids=["empty", "words"])
def test_a_damaged_file_is_reported(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"damaged|cannot be read"):
        read_weights(tmp_path / name)


def test_a_file_cut_short_is_reported(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:300])
    with pytest.raises(ArtifactError, match=r"damaged|cannot be read"):
        read_weights(tmp_path / "w.pt")


class Armed:
    """What a pickle can do: this one would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            lambda path: {"0.weight": Armed(path)},
            r"holds more than tensors, .* save model.state_dict\(\) alone",
        ),
        (lambda _: net(), r"holds more than tensors"),
        (lambda _: [torch.ones(2)], r"holds list, where a state dict is needed"),
    ],
    ids=["code", "a whole model", "a list"],
)
def test_a_pickle_of_more_than_a_state_dict_is_refused_and_its_code_does_not_run(
    tmp_path: Path, content: Callable[[Path], Any], words: str
) -> None:
    torch.save(content(tmp_path / "fired"), tmp_path / "w.pt")
    with pytest.raises(ArtifactError, match=words):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "fired").exists()
