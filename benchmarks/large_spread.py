"""A model in parts on two processes, cut without either having it whole in memory.

    python -m benchmarks.large_spread                 # some four minutes
    python -m benchmarks.large_spread --blocks 4      # half of the model

Residual blocks on the digits, one epoch, drawn, cut to half, not retrained: neither what it learns nor how
well the ticket does matters here. For each ``prune.gather`` the memory of both processes is read from the
kernel while they train and while they cut: `own` is theirs alone (anonymous), `resident` has pages of files
besides, which the kernel takes back where it needs the room.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from torch import Tensor, nn

WIDTH, HIDDEN, MB = 1024, 2048, 10**6
SECONDS = 0.01
RECIPE = """
name = "large-spread"
[task.data]
kind = "digits"
[task.model]
kind = "custom"
factory = "benchmarks.large_spread:model"
model_args = {{ blocks = {blocks} }}
[train]
epochs = 1
batch_size = 128
threads = 1
spread = "shard"
[watch]
signals = ["norm"]
calibration_items = 64
[stop.draw]
rule = "epoch"
epoch = 1.0
[prune]
calibration_items = 512
target = {{ macs = 0.5 }}
quality = "fast"
gather = "{gather}"
[energy]
meter = "none"
"""


class Block(nn.Module):
    """Two layers on a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.rise, self.fall = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream behind it."""
        return x + self.fall(self.rise(self.norm(x)).relu())


def model(blocks: int) -> nn.Module:
    """Return the model."""
    parts = [Block() for _ in range(blocks)]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), *parts, nn.Linear(WIDTH, 10))


def memory(pid: int) -> tuple[int, int]:
    """Return a process's own bytes and all that is resident."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    found = {
        name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.strip()
    }
    return 1024 * int(found["RssAnon"]), 1024 * int(found["VmRSS"])


def run(gather: str, blocks: int, folder: Path) -> dict[int, dict[str, list[int]]]:
    """Run the recipe in two processes; return the most that each had in each part, by rank."""
    path = folder / "large.toml"
    path.write_text(RECIPE.format(blocks=blocks, gather=gather), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "tpsprune", "train"]
    job = subprocess.Popen(
        [*command, str(path), "--out", str(folder / gather), "--device", "cpu"], stdout=subprocess.DEVNULL
    )
    most: dict[int, dict[str, list[int]]] = {}
    while job.poll() is None:
        for process in psutil.Process(job.pid).children():
            try:
                rank = int(process.environ()["RANK"])
                own, resident = memory(process.pid)
            except (psutil.Error, OSError, KeyError):
                continue
            part = "cut" if any((folder / gather).glob("*/dense.safetensors")) else "set up and train"
            seen = most.setdefault(rank, {}).setdefault(part, [0, 0])
            seen[:] = max(seen[0], own), max(seen[1], resident)
        time.sleep(SECONDS)
    if job.returncode:
        raise SystemExit(job.returncode)
    return most


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="on a disk with some ten times the weights' bytes free")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    weights = 4 * sum(each.numel() for each in model(options.blocks).parameters())
    print(f"weights {weights / MB:.0f} MB; the most of each process in MB, with what its imports take")
    print("| gather | part | process | own | resident |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for gather in ("disk", "host"):
            began = time.perf_counter()
            for rank, parts in sorted(run(gather, options.blocks, Path(folder)).items()):
                for part, (own, resident) in parts.items():
                    print(
                        f"| {gather} | {part} | {rank} | {own / MB:.0f} | {resident / MB:.0f} |", flush=True
                    )
            print(f"{gather}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
