"""What several bundles of a family hold alike is stored once, and each still reads as it was written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tpsprune
from tests.export.bundles import write
from tpsprune.errors import ArtifactError
from tpsprune.export import read_bundle, share_tensors
from tpsprune.runs.tensors import save_tensors

BIG = torch.arange(4096, dtype=torch.float32).reshape(64, 64)


def held(size: int) -> dict[str, Tensor]:
    return {
        "embedding": BIG,
        "half": BIG.bfloat16() if size < 3 else BIG.bfloat16() + 1,
        "own": BIG + size,
        "narrow": BIG[: 10 * size],
        "small": torch.tensor(3),
    }


def written(folder: Path, sizes: int = 3) -> list[Path]:
    folder.mkdir()
    return [write(folder / str(size), held=held(size)) for size in range(1, sizes + 1)]


def check_all(folders: list[Path]) -> None:
    for size, folder in enumerate(folders, start=1):
        found = read_bundle(folder).tensors
        assert list(found) == sorted(held(size)), folder
        for name, tensor in held(size).items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_what_two_or_more_hold_alike_to_the_bit_is_stored_once(tmp_path: Path) -> None:
    folders = written(tmp_path / "family")
    before = bytes_of(tmp_path / "family")
    share_tensors(tmp_path / "family", folders)
    check_all(folders)
    # The embedding twice less, its half precision once.
    saved = 2 * BIG.numel() * 4 + BIG.numel() * 2
    assert before - bytes_of(tmp_path / "family") == pytest.approx(saved, abs=1000)
    assert not list((tmp_path / "family").glob("*/ticket.safetensors"))
    files = {path: path.read_bytes() for path in (tmp_path / "family").rglob("*") if path.is_file()}
    share_tensors(tmp_path / "family", folders)
    assert files == {path: path.read_bytes() for path in (tmp_path / "family").rglob("*") if path.is_file()}


def test_a_bundle_that_joins_later_takes_what_is_there_and_changes_no_other(tmp_path: Path) -> None:
    folders = written(tmp_path / "family", sizes=2)
    share_tensors(tmp_path / "family", folders)
    files = {path: path.read_bytes() for path in (tmp_path / "family").rglob("*") if path.is_file()}
    folders.append(write(tmp_path / "family" / "3", held=held(3)))
    share_tensors(tmp_path / "family", folders)
    check_all(folders)
    assert not (folders[2] / "ticket.safetensors").exists()
    assert all(path.read_bytes() == content for path, content in files.items())


def test_where_nothing_is_alike_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "family").mkdir()
    folders = [write(tmp_path / "family" / str(size), held={"own": BIG + size}) for size in (1, 2)]
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    share_tensors(tmp_path / "family", folders)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write_number", [1, 2, 3, 4, 5])
def test_a_kill_at_any_write_leaves_bundles_and_the_next_call_ends_it(
    write_number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = written(tmp_path / "family", sizes=2)
    own, seen = Path.replace, 0

    def killed(self: Path, target: Path) -> Path:
        nonlocal seen
        seen += 1
        if seen == write_number:
            raise KeyboardInterrupt
        return own(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            share_tensors(tmp_path / "family", folders)
    check_all(folders)
    share_tensors(tmp_path / "family", folders)
    check_all(folders)
    assert all((folder / "own.safetensors").is_file() for folder in folders)
    assert not any((folder / "ticket.safetensors").exists() for folder in folders)


def lose(shared: Path) -> None:
    shared.unlink()


def change(shared: Path) -> None:
    content = bytearray(shared.read_bytes())
    content[-1] ^= 1
    shared.write_bytes(content)


def put_another(shared: Path) -> None:
    save_tensors(shared, {"embedding": BIG[:3]}, {})


def lead_away(shared: Path) -> None:
    shared.rename(shared.parent.parent / "elsewhere")
    shared.symlink_to(shared.parent.parent / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lose, r"is not beside it: copy the whole family, or export the size"),
        (change, r"shared\.safetensors is not as it was written"),
        (put_another, r"shared\.safetensors is \d+ bytes long where"),
        (lead_away, r"a link out of its folder"),
    ],
)
def test_what_is_beside_must_be_what_was_written(
    harm: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    folders = written(tmp_path / "family")
    share_tensors(tmp_path / "family", folders)
    harm(tmp_path / "family" / "shared.safetensors")
    with pytest.raises(ArtifactError, match=words):
        read_bundle(folders[0])


def test_a_family_whose_embedding_is_left_alone_holds_it_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Embedding(500, 16), torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
    )
    ids = torch.randint(500, (256, 3))
    settings = {"quality": "fast", "ignored_layers": ["0"], "embedding_width": False}
    family = tpsprune.family(net, ids, sizes=(0.75, 0.5), **settings)
    tpsprune.save(family, tmp_path / "family")
    assert (tmp_path / "family" / "shared.safetensors").is_file()
    for size in (0.75, 0.5):
        loaded = tpsprune.load(tmp_path / "family", size=size, model=net)
        assert torch.equal(loaded(ids), family[size].ticket(ids))
    shutil.copytree(tmp_path / "family" / "0.5", tmp_path / "alone")
    with pytest.raises(ArtifactError, match="one size of a family"):
        tpsprune.load(tmp_path / "alone", model=net)
