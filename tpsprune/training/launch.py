"""From a launcher's processes to ``Peers``: torchrun, accelerate and SLURM set the same environment."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import distributed

from tpsprune.errors import DeviceError, PeersError, first_line
from tpsprune.numerics import peers
from tpsprune.numerics.peers import ALONE, AbstractPeers, Gathered
from tpsprune.training.device import choose_device

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Job:
    """What a launcher says of the job: an identity that outlives a restart, and whether this is one."""

    identity: str
    is_restarted: bool

    @staticmethod
    def is_launched() -> bool:
        """Return whether torchrun started this process, which may start it again."""
        return "TORCHELASTIC_RUN_ID" in os.environ

    @classmethod
    def of_environment(cls) -> Job:
        """Read what torchrun sets; a job that it gave no name is named by the agent that started it."""
        name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if name == "none":
            name = f"agent {os.getppid()} on {identify_machine()}"
        return cls(name, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0)


@contextmanager
def gathered(device_name: str, *, spreads: bool = False) -> Iterator[AbstractPeers]:
    """Yield the processes that a launcher started on this job, this one among them; alone where it is one.

    Where a model ``spreads`` over them, one that a launcher started is a group as well. Gradients go over
    NCCL between GPUs and over gloo between processors. Nothing is started here.

    Raises:
        DeviceError: the GPU is not there, or this PyTorch cannot connect GPUs.
        PeersError: the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and not (spreads and "WORLD_SIZE" in os.environ):
        yield ALONE
        return
    device = choose_device(device_name)
    if device.type == "cuda" and not distributed.is_nccl_available():
        raise DeviceError(
            f"this PyTorch ({torch.__version__}) has no NCCL to connect GPUs: --device cpu trains over gloo"
        )
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=peers.SILENCE, **_meeting_place(size))
    except (ValueError, RuntimeError) as error:
        raise PeersError(
            f"WORLD_SIZE is {size}, and the other processes cannot be reached ({first_line(error)}): start "
            "all with torchrun, or this one alone with WORLD_SIZE unset"
        ) from error
    try:
        yield Gathered(size, identify_machine())
    finally:
        distributed.destroy_process_group()


def _meeting_place(size: int) -> dict[str, Any]:
    """Return where the processes meet, under a prefix of this attempt where torchrun keeps one store for all.

    Without it (torch 2.13) a restarted job reads the addresses of its killed processes, and may wait for them
    until the timeout.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, size, is_master=False, timeout=peers.SILENCE)  # type: ignore[attr-defined]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = distributed.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    return {"store": own, "rank": int(os.environ["RANK"]), "world_size": size}


def identify_machine() -> str:
    """Return what distinguishes this machine from others, without its name.

    Containers of one machine are one: they share its kernel, and its counters of energy.
    """
    try:
        found = _BOOT.read_text(encoding="ascii")
    except OSError:
        found = platform.node()
    return hashlib.sha256(f"tpsprune {found}".encode()).hexdigest()[:12]
