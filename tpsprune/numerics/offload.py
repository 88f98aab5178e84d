"""Tensors offloaded to disk: in files mapped into memory, of which a few lie there at a time.

A mapped tensor is an ordinary one on the CPU: products read it, fits write it, autograd differentiates it,
with the same bits. Its pages come from the file when an operation touches them. ``OffloadStore`` sees every
operation; once the tensors touched exceed a limit it drops their pages from the process. Nothing is lost:
the pages of a shared mapping are the file's. Hooks of modules (as Accelerate's) would see forward passes
only, where a cut copies, slices, fits and differentiates besides.

In files lie what is read into the store and all results of operations that are not small: copies of weights,
activations that autograd saves, moments. The files have no names by the time they are used: they are gone
with their tensors, however the process ends.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tpsprune.errors import CannotWriteError, PruneError

LEAST_BYTES: Final = 2**17
"""Tensors of fewer bytes stay in memory: norms, biases, the activations of few tokens."""
RESIDENT_BYTES: Final = 2**26
"""Mapped tensors that may lie in memory until their pages are dropped; a larger one lies there alone."""
DONT_NEED: Final = 4
"""Linux's ``MADV_DONTNEED``."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's ``mallopt`` calls them."""
IN_MEMORY: Final = ("tmpfs", "ramfs")


class _SeesOperations:
    """Apart from the mode, as in ``macs``: one that defines this method imports torch's compiler."""

    def __init__(self, folder: Path, place: Path) -> None:
        super().__init__()
        self.folder = folder
        self._named = place
        self._touched: dict[int, torch.UntypedStorage] = {}
        self._resident = 0
        self._is_active = False
        self._fault: CannotWriteError | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        # glibc's; another library has none. What a cut frees stays with the process otherwise.
        self._trim = getattr(self._libc, "malloc_trim", None)
        if self._trim:
            self._trim.argtypes = [ctypes.c_size_t]

    def place(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor in a file, with the strides that it has.

        Raises:
            CannotWriteError: the folder cannot hold it.
        """
        span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        strides = tensor.stride() if span == tensor.numel() else _row_major(tensor.shape)
        placed = self._new(tensor.shape, strides, tensor.dtype)
        placed.copy_(tensor)
        self._note([placed])
        return placed

    def read(self, file: BufferedReader, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the tensor whose elements come next in a file.

        Raises:
            CannotWriteError: the folder cannot hold it.
            EOFError: the file ends before.
        """
        tensor = self._new(shape, _row_major(shape), dtype)
        into = tensor.reshape(-1).view(torch.uint8).numpy()
        for begin in range(0, len(into), RESIDENT_BYTES):
            part = into[begin : begin + RESIDENT_BYTES]
            if file.readinto(part.data) != len(part):
                raise EOFError(f"{file.name} ends within a tensor")
            self._drop(tensor.untyped_storage())
        return tensor

    def release(self) -> None:
        """Drop the pages of all mapped tensors that operations have touched, and of freed blocks."""
        for storage in self._touched.values():
            self._drop(storage)
        if self._trim:
            self._trim(0)
        self._touched.clear()
        self._resident = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        given = list(_tensors_in((*args, *kwargs.values()) if kwargs else args))
        self._note(each for each in given if self._is_ours(each))
        return self._placed(result, given)

    def _placed(self, result: Any, given: list[Tensor]) -> Any:
        """Return a result with its tensors in files, but for small ones and for views of what was given."""
        if isinstance(result, tuple):
            return tuple(self._placed(each, given) for each in result)
        if isinstance(result, list):
            return [self._placed(each, given) for each in result]
        if (
            isinstance(result, Tensor)
            and result.nbytes >= LEAST_BYTES
            and _has_storage(result)
            and not self._is_ours(result)
            and all(_place(result) != _place(each) for each in given if _has_storage(each))
        ):
            return self.place(result)
        return result

    def _new(self, shape: Iterable[int], strides: Iterable[int], dtype: torch.dtype) -> Tensor:
        size = max(1, prod(shape)) * dtype.itemsize
        try:
            handle, name = tempfile.mkstemp(dir=self.folder)
            try:
                # Where the disk is full a file with holes would end the process, not this call.
                os.posix_fallocate(handle, 0, size)
                storage: Any = torch.UntypedStorage.from_file(name, True, size)
            finally:
                os.close(handle)
                Path(name).unlink()
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            self._fault = CannotWriteError(
                f"{self._named} cannot hold {size:,} bytes more ({reason}); some ten times the bytes of the "
                "weights are needed there: free some"
            )
            raise self._fault from error
        return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, tuple(shape), tuple(strides))

    def _is_ours(self, tensor: Tensor) -> bool:
        if not _has_storage(tensor):
            return False
        name = tensor.untyped_storage().filename
        return name is not None and name.startswith(f"{self.folder}{os.sep}")

    def _note(self, tensors: Iterable[Tensor]) -> None:
        for each in tensors:
            storage = each.untyped_storage()
            if storage.data_ptr() not in self._touched:
                self._touched[storage.data_ptr()] = storage
                self._resident += storage.nbytes()
        if self._resident > RESIDENT_BYTES:
            self.release()

    def _drop(self, storage: torch.UntypedStorage) -> None:
        if self._libc.madvise(storage.data_ptr(), storage.nbytes(), DONT_NEED):
            reason = os.strerror(ctypes.get_errno())
            raise PruneError(f"offload: the system keeps pages of mapped files in memory ({reason})")


@final
class OffloadStore(_SeesOperations, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mapped tensors in a folder, and what keeps most of them out of memory while it is ``active``.

    Cost: some 10 µs for each operation, and 0.1 ms and a copy for each result that is not small. What is
    touched again comes from the system's cache of the file as long as that has room, else from the disk.
    """

    @contextmanager
    def active(self) -> Iterator[None]:
        """Place large results of operations in files in this block; in a block within it nothing changes.

        Raises:
            CannotWriteError: the folder could not hold one. It is raised again where the block is left: what
                tries code that may raise anything takes it for a fault of that, and goes on without.
        """
        if self._is_active:
            yield
            return
        self._is_active, self._fault = True, None
        try:
            with _returning_what_is_freed(), self:
                yield
        except Exception as error:
            if self._fault in (None, error):
                raise
        finally:
            self._is_active = False
            self.release()
        if self._fault is not None:
            raise self._fault


@contextmanager
def open_store(folder: Path) -> Iterator[OffloadStore]:
    """Offload into ``folder`` until the block is left; as ``make_store``."""
    with make_store(folder) as store, store.active():
        yield store


@contextmanager
def make_store(folder: Path, named: Path | None = None) -> Iterator[OffloadStore]:
    """Yield a store in ``folder``, which offloads while it is active; tensors that live on keep their files.

    Errors call the folder as it is ``named``.

    Raises:
        PruneError: the folder is not there or lies in memory itself, or the system is not Linux.
    """
    if sys.platform != "linux":
        raise PruneError(
            f"offload needs Linux, which drops the pages of mapped files when told (here: {sys.platform})"
        )
    try:
        place = Path(tempfile.mkdtemp(prefix="tpsprune-", dir=folder)).resolve()
    except OSError as error:
        raise PruneError(f"offload = '{folder}': {error.strerror}; a folder on a disk is needed") from error
    store = OffloadStore(place, named or folder)
    try:
        if (kind := _file_system_of(place)) in IN_MEMORY:
            raise PruneError(
                f"offload = '{named or folder}' lies in memory itself ({kind}); a folder on a disk is needed"
            )
        yield store
    finally:
        store.release()
        place.rmdir()


@contextmanager
def _returning_what_is_freed() -> Iterator[None]:
    """Have glibc give freed blocks of a megabyte back to the system; of its own it keeps those of up to 32.

    A cut of 0.3 GB of weights left 0.6 GB with the process so. Afterwards blocks of 8 MB go back: where those
    of up to 32 stayed, the training of a sharded model took twice the memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(MMAP_THRESHOLD, 2**20)
        mallopt(TRIM_THRESHOLD, 2**22)
    try:
        yield
    finally:
        if mallopt:
            mallopt(MMAP_THRESHOLD, 2**23)
            mallopt(TRIM_THRESHOLD, 2**24)


def _file_system_of(folder: Path) -> str:
    """Return the kind of file system that a folder lies on, or nothing where the system does not say."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        about, _, kind = line.partition(" - ")
        if about.split()[2] == number:
            return kind.split()[0]
    return ""


def _row_major(shape: Iterable[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    return tuple(prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


def _has_storage(tensor: Tensor) -> bool:
    """Return whether a tensor has a storage in the memory of the CPU."""
    return tensor.device.type == "cpu" and tensor.layout is torch.strided


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for each in values:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _tensors_in(each)
