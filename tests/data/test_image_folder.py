"""Folders and zips of images: decoded once, kept, and refused in words."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.data.picture_book import SHADES, encoded, files, in_folder, in_zip, picture
from tpsprune.data import Dataset, load
from tpsprune.data.image_folder import cache_key, decode, read_cache, write_cache
from tpsprune.errors import DataError
from tpsprune.recipe.task import ImageFolderData


def read(path: Path, **settings: object) -> Dataset:
    small = {"size": 12, "cache": str(path.parent / "cache"), "validation_share": 0.25}
    return load(ImageFolderData(path=str(path), **{**small, **settings}))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return in_folder(tmp_path / "book", files())


def cached(path: Path) -> list[Path]:
    return sorted((path.parent / "cache").iterdir())


def test_images_come_back_pixel_for_pixel_under_the_class_of_their_folder(book: Path) -> None:
    data = read(book)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 9)
    assert data.facts.input_shape == (3, 12, 12)
    assert data.facts.classes == 3
    for label, (name, shade) in enumerate(SHADES.items()):
        expected = {picture(1000 * i + len("test"), shade).tobytes() for i in range(3)}
        images = data.test.inputs[data.test.labels == label].permute(0, 2, 3, 1)
        assert {image.numpy().tobytes() for image in images} == expected, name
    assert data.train.labels.bincount().tolist() == [6, 6, 6]


def test_a_zip_gives_what_its_folder_gives_even_inside_one_more_folder(book: Path, tmp_path: Path) -> None:
    from_folder = read(book)
    flat = read(in_zip(tmp_path / "flat.zip", files()))
    inside = {f"book/{name}": raw for name, raw in files().items()}
    deep = read(in_zip(tmp_path / "deep.zip", {**inside, "__MACOSX/book/train/cat/._00.png": b""}))
    for other in (flat, deep):
        for one, two in zip(
            (from_folder.train, from_folder.validation, from_folder.test),
            (other.train, other.validation, other.test),
            strict=True,
        ):
            assert torch.equal(one.inputs, two.inputs)
            assert torch.equal(one.labels, two.labels)


def test_a_zip_is_never_unpacked_to_disk(tmp_path: Path) -> None:
    content = {**files(), "../train/cat/evil.png": b"", "/abs/train/cat/evil.png": b""}
    path = in_zip(tmp_path / "book.zip", content)
    data = read(path)
    assert len(data.test) == 9
    assert sorted(item.name for item in tmp_path.iterdir()) == ["book.zip", "cache"]
    assert len(cached(path)) == 1


def test_files_of_other_kinds_are_passed_over(book: Path) -> None:
    for name in ("train/cat/notes.txt", "train/cat/._00.png", "train/README", "train/.hidden/x.png"):
        (book / name).parent.mkdir(exist_ok=True)
        (book / name).write_bytes(b"no image")
    assert len(read(book).train) == 18


def test_images_of_another_size_are_scaled_and_their_centre_cropped(tmp_path: Path) -> None:
    content = files()
    wide = np.zeros((24, 64, 3), np.uint8)
    wide[:, 12:52] = (250, 0, 0)  # wider than the cut by what the filter looks beyond it
    content["test/cat/00.png"] = encoded(wide)
    data = read(in_folder(tmp_path / "book", content))
    reddest = data.test.inputs.double().mean((2, 3))[:, 0].max()
    assert float(reddest) == 250.0


def test_grey_is_read_as_colour_and_colour_as_grey_where_set(tmp_path: Path) -> None:
    content = files()
    content["test/cat/00.png"] = encoded(np.full((12, 12), 255, np.uint8))
    book = in_folder(tmp_path / "book", content)
    assert read(book, channels=3).test.inputs[0].min() == 255
    grey = read(book, channels=1)
    assert grey.facts.input_shape == (1, 12, 12)
    assert grey.test.inputs[0].min() == 255


def test_jpegs_are_read_too_and_nearly_as_they_were(tmp_path: Path) -> None:
    content = {
        name.replace(".png", ".JPG"): encoded(picture(0, SHADES[name.split("/")[1]], 48), "JPEG")
        for name in files()
    }
    data = read(in_folder(tmp_path / "book", content))
    for label, shade in enumerate(SHADES.values()):
        colour = data.test.inputs[data.test.labels == label].double().mean((0, 2, 3))
        torch.testing.assert_close(colour, torch.tensor(shade).double(), atol=6.0, rtol=0)


def test_a_second_reading_decodes_nothing(book: Path) -> None:
    first = read(book)
    # What is no image any more, with size and time as before, can only come from the cache.
    for file in book.rglob("*.png"):
        times = file.stat()
        file.write_bytes(b"x" * times.st_size)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = read(book)
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert len(cached(book)) == 1


def test_a_changed_file_another_size_or_other_channels_are_decoded_again(book: Path) -> None:
    read(book)
    read(book, size=10)
    read(book, channels=1)
    assert len(cached(book)) == 3
    file = book / "test/cat/00.png"
    before = file.stat()
    file.write_bytes(encoded(np.full((12, 12, 3), 7, np.uint8)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    assert file.stat().st_size == before.st_size
    assert read(book).test.inputs[0].max() == 7
    assert len(cached(book)) == 4


def test_a_changed_zip_entry_is_decoded_again_and_a_moved_zip_is_not(tmp_path: Path) -> None:
    path = in_zip(tmp_path / "book.zip", files())
    read(path)
    path = path.rename(tmp_path / "moved.zip")
    read(path)
    assert len(cached(path)) == 1
    in_zip(path, {**files(), "test/cat/00.png": encoded(np.full((12, 12, 3), 7, np.uint8))})
    assert read(path).test.inputs[0].max() == 7


def test_without_a_cache_folder_the_users_own_is_used(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(book.parent / "xdg"))
    read(book, cache=None)
    assert len(list((book.parent / "xdg" / "tpsprune").glob("images-*.npy"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(book.parent / "home"))
    read(book, cache=None)
    assert len(list((book.parent / "home" / ".cache" / "tpsprune").glob("images-*.npy"))) == 1


def test_nothing_there_is_reported_with_what_would_do(tmp_path: Path) -> None:
    words = (
        r"task\.data\.path: .*/nowhere is not there; expected a folder or zip that holds train/CLASS/\*\.jpg"
    )
    with pytest.raises(DataError, match=words):
        read(tmp_path / "nowhere")


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "book.zip").write_bytes(b"PK, but not for long")
    with pytest.raises(
        DataError, match=r"book\.zip is neither a folder nor a sound zip \(File is not a zip file\)"
    ):
        read(tmp_path / "book.zip")


def test_a_zip_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = in_zip(tmp_path / "book.zip", files())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"book\.zip is neither a folder nor a sound zip \(File is not a zip"):
        read(path)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_missing_split_is_named(tmp_path: Path, split: str, kind: str) -> None:
    content = {name: raw for name, raw in files().items() if not name.startswith(split)}
    path = in_folder(tmp_path / "b", content) if kind == "folder" else in_zip(tmp_path / "b.zip", content)
    words = rf"has no class folders in {split}/; expected images as {split}/CLASS/\*\.jpg\|png"
    with pytest.raises(DataError, match=words):
        read(path)


def test_an_empty_class_folder_is_named(book: Path) -> None:
    (book / "train" / "fox").mkdir()
    with pytest.raises(
        DataError, match=r"holds no image in train/fox/; add at least one \.jpg or \.png, or remove"
    ):
        read(book)


def test_an_empty_class_folder_of_a_zip_is_named(tmp_path: Path) -> None:
    path = in_zip(tmp_path / "book.zip", {**files(), "train/fox/": b""})
    with pytest.raises(
        DataError, match=r"holds no image in train/fox/; add at least one \.jpg or \.png, or remove"
    ):
        read(path)


def test_a_test_class_that_is_not_trained_on_is_named(book: Path) -> None:
    in_folder(book, {"test/fox/0.png": encoded(picture(0, (1, 2, 3)))})
    with pytest.raises(
        DataError, match="has the class 'fox' in test/ and not in train/; expected only classes that"
    ):
        read(book)


def test_a_single_class_is_named(tmp_path: Path) -> None:
    content = {name: raw for name, raw in files().items() if "/cat/" in name}
    with pytest.raises(DataError, match="holds only one class, 'cat'; expected two classes or more"):
        read(in_folder(tmp_path / "book", content))


def test_a_class_too_small_to_share_is_named(tmp_path: Path) -> None:
    content = {**files(train=20), "train/fox/0.png": encoded(picture(0, (1, 2, 3)))}
    words = (
        r"task\.data\.validation_share: leaves the validation split of 15 items without class 3, which has 1"
    )
    with pytest.raises(DataError, match=words):
        read(in_folder(tmp_path / "book", content))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_damaged_image_is_named_and_no_cache_is_left(tmp_path: Path, kind: str) -> None:
    content = files()
    content["train/dog/03.png"] = content["train/dog/03.png"][:200]
    path = in_folder(tmp_path / "b", content) if kind == "folder" else in_zip(tmp_path / "b.zip", content)
    with pytest.raises(
        DataError, match=r"^train/dog/03\.png: is not a sound JPEG or PNG image \(.+\); leave it out"
    ):
        read(path)
    assert cached(path) == []


def test_a_damaged_zip_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "book.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in files().items():
            archive.writestr(name, raw)
        place = archive.getinfo("train/dog/03.png").header_offset + 100
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"^train/dog/03\.png: cannot be read from the zip \(Bad CRC-32"):
        read(path)


SHAPE = (40, 3, 16, 16)


def some_images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "images-a.npy"
    write_cache(path, iter(some_images()), SHAPE)
    assert (read_cache(path, SHAPE) == some_images()).all()
    assert list(path.parent.iterdir()) == [path]


def test_what_is_read_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    path = tmp_path / "images-a.npy"
    write_cache(path, some_images(), SHAPE)
    images = read_cache(path, SHAPE)
    assert images is not None
    images[:] = 0
    assert (read_cache(path, SHAPE) == some_images()).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: np.save(path, np.zeros((2, 2))),
        lambda path: np.save(path, np.array([{"a": 1}]), allow_pickle=True),
    ],
    ids=["missing", "empty", "cut short", "another shape", "a pickle"],
)
def test_a_spoilt_cache_counts_as_not_there(tmp_path: Path, spoil) -> None:
    path = tmp_path / "images-a.npy"
    write_cache(path, some_images(), SHAPE)
    spoil(path)
    assert read_cache(path, SHAPE) is None


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "images-a.npy"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        words = rf"task\.data\.cache: the decoded images cannot be written to {tmp_path} \(File too large\);"
        with pytest.raises(DataError, match=words):
            write_cache(path, some_images(), SHAPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    words = r"task\.data\.cache: the decoded images cannot be written to .*/file \(.+\); choose a folder"
    with pytest.raises(DataError, match=words):
        write_cache(tmp_path / "file" / "images-a.npy", some_images(), SHAPE)


def test_a_fault_while_decoding_leaves_nothing(tmp_path: Path) -> None:
    def faulty() -> Iterator[NDArray[np.uint8]]:
        yield some_images()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "images-a.npy", faulty(), SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_the_cache_as_it_was_and_its_part_is_swept_by_the_next_writer(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; import numpy as np\n"
        "from tpsprune.data.image_folder import write_cache\n"
        "def images():\n"
        "    for _ in range(39): yield np.zeros((3, 16, 16), np.uint8)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_cache(Path(sys.argv[1]), images(), {SHAPE})\n"
    )
    path = tmp_path / "images-a.npy"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=120)
    assert len(list(tmp_path.iterdir())) == 1
    write_cache(path, some_images(), SHAPE)
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_changes_with_everything_that_changes_the_pixels() -> None:
    base = ("/book", [("train/cat/0.png", 10, 5)], 32, 3)
    others = [
        ("/other", base[1], 32, 3),
        ("/book", [("train/cat/1.png", 10, 5)], 32, 3),
        ("/book", [("train/cat/0.png", 11, 5)], 32, 3),
        ("/book", [("train/cat/0.png", 10, 6)], 32, 3),
        ("/book", base[1] * 2, 32, 3),
        ("/book", base[1], 28, 3),
        ("/book", base[1], 32, 1),
    ]
    assert len({cache_key(*case) for case in (base, *others)}) == 8
    assert cache_key(*base) == cache_key(*base)


WHOLE = {kind: encoded(picture(0, (90, 120, 40), 24), kind) for kind in ("PNG", "JPEG")}


def test_an_image_of_the_wanted_size_comes_out_channel_first() -> None:
    pixels = picture(1, (9, 90, 200))
    assert (decode(encoded(pixels), "x", 12, 3) == pixels.transpose(2, 0, 1)).all()


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG"]),
    cut=st.integers(0, 400),
    place=st.integers(0, 2000),
    value=st.integers(0, 255),
)
def test_any_damage_gives_pixels_or_a_named_fault(kind: str, cut: int, place: int, value: int) -> None:
    raw = bytearray(WHOLE[kind])
    raw[place % len(raw)] = value
    try:
        shape: object = decode(bytes(raw[: len(raw) - cut]), "holiday.png", 16, 3).shape
    except DataError as error:
        shape = str(error).split(": ")[0]
    assert shape in {(3, 16, 16), "holiday.png"}


@pytest.mark.parametrize("raw", [b"", b"hello", b"GIF89a"], ids=["empty", "text", "gif"])
def test_what_is_no_image_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match=r"^a\.png: is not a sound JPEG or PNG image \(.+\); leave it out$"):
        decode(raw, "a.png", 8, 3)


@pytest.mark.parametrize("side", [8200, 14_000], ids=["large", "pillow-refuses-it-too"])
def test_a_small_file_that_claims_to_be_huge_is_refused(side: int) -> None:
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    with pytest.raises(DataError, match=r"^bomb\.png: is (of \d+×\d+ pixels; at most 67108864|not a sound)"):
        decode(stream.getvalue(), "bomb.png", 8, 3)


def test_sixteen_bits_a_channel_are_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(stream, "PNG")
    with pytest.raises(DataError, match=r"^a\.png: has more than 8 bits a channel; expected 8-bit images$"):
        decode(stream.getvalue(), "a.png", 8, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_images_of_every_usual_mode_are_read(mode: str) -> None:
    stream = io.BytesIO()
    kind = "JPEG" if mode == "CMYK" else "PNG"
    Image.fromarray(picture(0, (255, 255, 255))).convert("RGB").convert(mode).save(stream, kind)
    assert decode(stream.getvalue(), "a.png", 12, 3).shape == (3, 12, 12)
    assert decode(stream.getvalue(), "a.png", 12, 1).shape == (1, 12, 12)
