"""A ticket as a program of torch.export: equal, for batches of any size, without a pickle."""

from __future__ import annotations

import errno
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.export.nets import CALLED, Fixed, Loud, batch_for, made
from tpsprune.errors import ArtifactError, CannotWriteError
from tpsprune.export import TorchExport, predictor_of
from tpsprune.export.torch_export import find_unsafe

FORMAT = TorchExport()


@pytest.mark.parametrize("name", CALLED)
def test_the_program_computes_equally_at_every_batch_size(tmp_path: Path, name: str) -> None:
    model = made(name)
    assert FORMAT.write(tmp_path, model, batch_for(name, 2)) == ("ticket.pt2",)
    program = FORMAT.reload(tmp_path)
    for items in (1, 2, 7, 64):
        batch = batch_for(name, items)
        assert torch.equal(program(batch), predictor_of(model)(batch)), items


def test_a_user_needs_torch_alone_to_run_it(tmp_path: Path) -> None:
    model = made("Convolutions")
    FORMAT.write(tmp_path, model, batch_for("Convolutions", 2))
    program = torch.export.load(tmp_path / "ticket.pt2").module()
    batch = batch_for("Convolutions", 5)
    assert torch.equal(program(batch), model(batch))


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = made("Convolutions")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    FORMAT.write(tmp_path, model.eval(), batch_for("Convolutions", 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_file_holds_no_pickle_and_no_path(tmp_path: Path) -> None:
    FORMAT.write(tmp_path, made("Named"), batch_for("Named", 2))
    assert find_unsafe(tmp_path / "ticket.pt2") == []
    with zipfile.ZipFile(tmp_path / "ticket.pt2") as archive:
        for each in archive.infolist():
            content = archive.read(each)
            assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"PK")), each.filename
            assert not re.search(rb"(/[\w.-]+){2,}\.py", content), each.filename


def test_a_program_that_holds_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    program = torch.export.export(made("Convolutions"), (batch_for("Convolutions", 2),))
    torch.export.save(program, tmp_path / "ticket.pt2")
    assert find_unsafe(tmp_path / "ticket.pt2"), "torch pickles the example inputs"
    with pytest.raises(
        ArtifactError, match=r"ticket\.pt2 holds more than text and numbers \(.*\): it is not loaded"
    ):
        FORMAT.reload(tmp_path)


def test_what_torch_would_pickle_is_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpsprune.export.torch_export.find_unsafe", lambda _: ["weight_0"])
    with pytest.raises(
        ArtifactError, match=r"^torch-export: torch pickles weight_0 of this ticket, and nothing"
    ):
        FORMAT.write(tmp_path, nn.Linear(5, 3).eval(), torch.randn(2, 5))


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ticket.pt2").write_bytes(b"no archive")
    with pytest.raises(ArtifactError, match=r"ticket\.pt2 is no program of torch\.export"):
        FORMAT.reload(tmp_path)


@pytest.mark.parametrize(("model", "items"), [(Fixed(), 4), (Loud(), 2)], ids=["fixed", "loud"])
def test_a_model_that_cannot_be_captured_is_reported(tmp_path: Path, model: nn.Module, items: int) -> None:
    with pytest.raises(
        ArtifactError, match=r"torch-export: torch\.export cannot capture the ticket for batches"
    ):
        FORMAT.write(tmp_path, model.eval(), torch.randn(items, 5))
    assert list(tmp_path.iterdir()) == []


class Full(io.BytesIO):
    """A file on a disk that is full after so many bytes."""

    def write(self, content: Any, /) -> int:
        if self.tell() + len(content) > 5_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_a_disk_that_is_full_is_reported_and_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
    with pytest.raises(CannotWriteError, match=r"^no space left on the device while writing .*ticket\.pt2"):
        FORMAT.write(tmp_path, nn.Linear(64, 64).eval(), torch.randn(2, 64))
    assert list(tmp_path.iterdir()) == []
