from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tpsprune.data.image_folder import cache_key, read_cache, write_cache
from tpsprune.errors import DataError

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
    ids=["gone", "empty", "cut short", "another shape", "a pickle"],
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
    words = r"task\.data\.cache: the decoded images cannot be written to .*/file \(.+\); a folder with room"
    with pytest.raises(DataError, match=words):
        write_cache(tmp_path / "file" / "images-a.npy", some_images(), SHAPE)


def test_a_fault_while_decoding_leaves_nothing(tmp_path: Path) -> None:
    def faulty() -> Iterator[NDArray[np.uint8]]:
        yield some_images()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "images-a.npy", faulty(), SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_the_cache_as_it_was_and_its_part_is_swept_up_in_time(tmp_path: Path) -> None:
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
    (part,) = tmp_path.iterdir()
    assert part.suffix == ".part"
    write_cache(path, some_images(), SHAPE)
    assert part.exists()  # another process might still be writing it
    long_ago = part.stat().st_mtime - 2 * 24 * 3600
    os.utime(part, (long_ago, long_ago))
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
