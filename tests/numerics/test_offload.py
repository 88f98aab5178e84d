"""Mapped tensors hold the same bits, leave memory when told, and leave nothing on the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.errors import CannotWriteError, PruneError
from tpsprune.numerics import offload
from tpsprune.numerics.offload import OffloadStore, open_store
from tpsprune.runs.tensors import load_tensors, save_tensors

MIB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OffloadStore]:
    with open_store(tmp_path) as found:
        yield found


def is_mapped(tensor: Tensor) -> bool:
    return tensor.untyped_storage().filename is not None


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_a_placed_tensor_has_the_values_and_the_strides(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    axes = data.draw(st.permutations(range(len(sizes))))
    tensor = torch.randn(sizes).permute(axes)
    with open_store(tmp_path_factory.getbasetemp()) as store:
        placed = store.place(tensor)
        assert is_mapped(placed)
        assert torch.equal(placed, tensor)
        assert placed.stride() == tensor.stride()


def test_what_does_not_lie_densely_is_placed_row_by_row(store: OffloadStore) -> None:
    expanded = torch.arange(3.0)[:, None].expand(3, 4)
    placed = store.place(expanded)
    assert torch.equal(placed, expanded)
    assert placed.is_contiguous()


def test_pages_beyond_the_limit_leave_memory_and_their_values_stay(
    store: OffloadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "RESIDENT_BYTES", 16 * MIB)
    parts = [store.place(torch.full((8 * MIB // 4,), float(rank))) for rank in range(16)]
    store.release()
    before = resident_file_bytes()
    for rank, part in enumerate(parts):
        assert float(part.sum()) == rank * len(part)
        assert resident_file_bytes() - before <= 25 * MIB
    for part in parts:
        part.add_(1.0)
    store.release()
    assert resident_file_bytes() - before <= 8 * MIB  # code of torch that is read for the first time
    assert [float(part.mean()) for part in parts] == [rank + 1.0 for rank in range(16)]


def test_a_file_of_tensors_is_read_within_the_limit(
    store: OffloadStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "RESIDENT_BYTES", 4 * MIB)
    path = tmp_path / "large.safetensors"
    save_tensors(path, {str(each): torch.full((2 * MIB,), float(each)) for each in range(12)}, {})
    store.release()
    before = resident_file_bytes()
    found, _ = load_tensors(path)
    assert resident_file_bytes() - before <= 20 * MIB  # of 96
    assert [float(each.mean()) for each in found.values()] == [float(name) for name in found]
    assert all(map(is_mapped, found.values()))


def test_results_that_are_not_small_are_mapped_and_views_are_not_copied(store: OffloadStore) -> None:
    large, small = torch.zeros(256, 512), torch.zeros(16, 16)
    results = (
        large,
        large.clone(),
        large.double(),
        large.index_select(0, torch.arange(200)),
        large @ large.T,
    )
    assert all(map(is_mapped, results))
    assert not any(map(is_mapped, (small, small @ small, large.sum(0))))
    for view in (large.T, large.view(-1), large[3:], *large.chunk(2)):
        assert view.untyped_storage().data_ptr() == large.untyped_storage().data_ptr()
    factor, _ = torch.linalg.cholesky_ex(torch.eye(512))
    assert is_mapped(factor)


def test_what_an_operation_writes_to_is_what_it_returns(store: OffloadStore) -> None:
    with torch.utils._python_dispatch._disable_current_modes():
        plain = torch.zeros(2048, 2048)
    assert not is_mapped(plain)
    assert plain.add_(1.0) is plain
    assert torch.add(plain, 1.0, out=plain) is plain
    assert float(plain[0, 0]) == 2.0
    plain[1:].fill_(3.0)
    assert float(plain[1, 0]) == 3.0
    assert not is_mapped(plain)


def test_gradients_are_those_of_tensors_in_memory(store: OffloadStore) -> None:
    weight, inputs = torch.randn(512, 512), torch.randn(8, 512)
    found = []
    for each in (weight, store.place(weight)):
        leaf = each.requires_grad_(True)
        (found_here,) = torch.autograd.grad((inputs @ leaf.T).tanh().sum(), leaf)
        found.append(found_here)
    assert torch.equal(*found)


def test_files_have_no_names_and_the_folder_goes(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        placed = store.place(torch.ones(3))
        assert [each for each in tmp_path.rglob("*") if each.is_file()] == []
    assert list(tmp_path.iterdir()) == []
    assert placed.tolist() == [1.0] * 3


def test_a_full_disk_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = r"cannot hold 4,000 bytes more .No space left on device"
    monkeypatch.setattr(os, "posix_fallocate", full)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(tmp_path))
        with pytest.raises(CannotWriteError, match=words):
            store.place(torch.zeros(1000))
        assert list(store.folder.iterdir()) == []
        with pytest.raises(CannotWriteError, match=words):  # Once more, whoever has caught it.
            stack.close()


def test_a_folder_that_will_not_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"'.*/none': No such file"), open_store(tmp_path / "none"):
        pass
    shared = Path("/dev") / "shm"
    if shared.is_dir():
        with pytest.raises(PruneError, match=r"lies in memory itself .tmpfs"), open_store(shared):
            pass
        assert not list(shared.glob("tpsprune-*"))
