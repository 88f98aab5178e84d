from __future__ import annotations

import gzip
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tpsprune.data import load
from tpsprune.data.images import read_idx
from tpsprune.errors import DataError
from tpsprune.recipe.task import IdxData

FASHION = Path("/usr/share/datasets/fashion-mnist")


def idx_bytes(values: Tensor, code: int = 8) -> bytes:
    head = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for stem, count in (("train", 60), ("t10k", 20)):
        images = torch.randint(0, 256, (count, 9, 8))
        packed = gzip.compress(idx_bytes(images))
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(packed)
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(torch.arange(count) % 4))
    return tmp_path


def test_a_tensor_comes_back_from_an_idx_file_gzipped_or_not(tmp_path: Path) -> None:
    values = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    (tmp_path / "raw").write_bytes(idx_bytes(values))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx_bytes(values)))
    assert torch.equal(read_idx(tmp_path / "raw", 3), values)
    assert torch.equal(read_idx(tmp_path / "packed.gz", 3), values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cut short: an IDX head of 16 bytes is expected, 0 were found"),
        (b"\0\0\x08\x03\0\0", "cut short: an IDX head of 16 bytes is expected, 6 were found"),
        (idx_bytes(torch.zeros(2, 3, 4))[:-5], "cut short: 40 bytes are expected, 35 were found"),
        (idx_bytes(torch.zeros(2, 3, 4)) + b"x", "too long: 40 bytes are expected, (41|more) were found"),
        (idx_bytes(torch.zeros(24)), "begins with 0x00000801, where an IDX file of uint8 with 3 axes begins"),
        (idx_bytes(torch.zeros(2, 3, 4), code=13), "begins with 0x00000d03, .* begins with 0x00000803"),
    ],
)
@pytest.mark.parametrize("gz", [False, True])
def test_a_file_that_is_no_whole_idx_file_is_refused_with_what_was_found(
    tmp_path: Path, content: bytes, words: str, gz: bool
) -> None:
    path = tmp_path / ("images.gz" if gz else "images")
    path.write_bytes(gzip.compress(content) if gz else content)
    with pytest.raises(DataError, match=f"{path}: {words}"):
        read_idx(path, 3)


def test_a_gzip_stream_that_ends_early_reports_how_many_bytes_came_out(tmp_path: Path) -> None:
    packed = gzip.compress(idx_bytes(torch.randint(0, 256, (20, 10, 10))))
    (tmp_path / "images.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"cut short: 2016 bytes are expected, \d{3,4} were found"):
        read_idx(tmp_path / "images.gz", 3)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(idx_bytes(torch.randint(0, 256, (20, 10, 10)))))
    packed[-6] ^= 1
    (tmp_path / "images.gz").write_bytes(packed)
    with pytest.raises(
        DataError, match=r"is not a sound gzip file \(.*incorrect data check\); use a fresh copy"
    ):
        read_idx(tmp_path / "images.gz", 3)


def test_a_folder_of_idx_files_becomes_three_splits(folder: Path) -> None:
    data = load(IdxData(folder=str(folder), validation_share=0.2, train_limit=40, augment="flip"))
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 12, 20)
    assert data.facts.input_shape == (1, 9, 8)
    assert data.facts.classes == 4
    assert data.test.labels.tolist() == [i % 4 for i in range(20)]
    assert data.prepare.augment == "flip"
    assert data.name == folder.name


def test_a_missing_folder_is_reported_with_where_to_get_one(tmp_path: Path) -> None:
    words = (
        r"task\.data\.folder: .*/nowhere is not a folder; expected one that holds "
        r"train-images-idx3-ubyte\[\.gz\], "
        r"train-labels-idx1-ubyte\[\.gz\], t10k-images-.*`apt-get install dataset-fashion-mnist`"
    )
    with pytest.raises(DataError, match=words):
        load(IdxData(folder=str(tmp_path / "nowhere")))


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        DataError, match=r"lacks t10k-labels-idx1-ubyte; expected that file, with or without \.gz"
    ):
        load(IdxData(folder=str(folder)))


def test_labels_and_images_must_be_as_many(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(torch.zeros(59)))
    words = r"ubyte: holds 59 labels for the 60 images of train-images-idx3-ubyte\.gz; expected one label"
    with pytest.raises(DataError, match=words):
        load(IdxData(folder=str(folder)))


def test_a_file_without_images_is_refused(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(torch.zeros(0, 9, 8)))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(torch.zeros(0)))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: holds no images; expected at least one"):
        load(IdxData(folder=str(folder)))


def test_test_images_of_another_size_are_refused(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(torch.zeros(20, 8, 8)))
    with pytest.raises(
        DataError, match="training images are of 9×8, test images of 8×8 pixels; expected one size for"
    ):
        load(IdxData(folder=str(folder)))


def test_test_classes_that_are_not_trained_on_are_refused(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(torch.arange(20) % 6))
    with pytest.raises(
        DataError, match="the test labels go up to 5, the training labels to 3; expected only classes"
    ):
        load(IdxData(folder=str(folder)))


def test_a_single_class_is_refused(folder: Path) -> None:
    for stem, count in (("train", 60), ("t10k", 20)):
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(torch.zeros(count)))
    with pytest.raises(DataError, match="holds only one class; expected two classes or more"):
        load(IdxData(folder=str(folder)))


@pytest.mark.skipif(not FASHION.is_dir(), reason="Fashion-MNIST is not installed")
def test_fashion_mnist_is_read_whole() -> None:
    data = load(IdxData(folder=str(FASHION), validation_share=0.1))
    assert (len(data.train), len(data.validation), len(data.test)) == (54_000, 6_000, 10_000)
    assert data.train.labels.bincount().tolist() == [5400] * 10
    assert data.validation.labels.bincount().tolist() == [600] * 10
    assert data.prepare.mean is not None
    assert data.prepare.std is not None
    # The known figures of all 60,000 training images are 0.2860 and 0.3530.
    assert data.prepare.mean.item() == pytest.approx(0.2860, abs=0.001)
    assert data.prepare.std.item() == pytest.approx(0.3530, abs=0.001)


@pytest.mark.parametrize("lies", [False, True], ids=["states its size", "states less"])
def test_no_more_is_unpacked_than_the_header_states_and_may_be(tmp_path: Path, *, lies: bool) -> None:
    stated = (1000, 1000, 1300)
    head = b"\x00\x00\x08\x03" + struct.pack(">3I", *((2, 3, 4) if lies else stated))
    stream = zlib.compressobj(wbits=31)
    packed = stream.compress(head) + stream.compress(bytes(3 * 10**7)) + stream.flush()
    path = tmp_path / "bomb.gz"
    path.write_bytes(packed)
    assert len(packed) < 50_000
    words = (
        "too long: 40 bytes are expected, more were found"
        if lies
        else "states 1,300,000,016 bytes, and 1,073,741,824 are read at most; set task.data.max_bytes = 13000"
    )
    tracemalloc.start()
    with pytest.raises(DataError, match=words):
        read_idx(path, 3)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


def test_a_recipe_may_allow_for_less_or_more(folder: Path) -> None:
    with pytest.raises(DataError, match=r"longer than 100 bytes.*task.data.max_bytes = BYTES reads more"):
        load(IdxData(folder=str(folder), max_bytes=100))
    assert load(IdxData(folder=str(folder), max_bytes=10**6)).facts.classes == 4
