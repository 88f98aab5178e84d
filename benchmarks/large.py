"""A model of 1.5 GB of weights cut in a process that may have 1.2 GB of memory beyond its imports.

    python -m benchmarks.large                             # some eight minutes of processor time
    python -m benchmarks.large --blocks 10 --allowed 0.7   # a fifth of the model
    python -m benchmarks.large --blocks 10 --plain         # the same cut in memory, under no limit

A LLaMA of transformers with random weights, 16 sequences of 16 tokens, equal widths: neither what it says
nor how well the ticket does matters here. The process that cuts is under a limit that ends it (RLIMIT_DATA:
whatever memory is not a file's, reserved or used), and its largest resident memory, pages of files among it,
is read from the kernel. Both are counted from what the imports take.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import tpsprune
from tpsprune.models.libraries import help_torchvision

GB, HALF = 10**9, tpsprune.Macs(0.5)
WIDTH, INNER, HEADS, TOKENS, SEQUENCES, LENGTH = 1024, 1024, 16, 4096, 16, 16


def llama(blocks: int) -> Any:
    """Return the model."""
    help_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=blocks,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            vocab_size=TOKENS,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )


def make(blocks: int, folder: Path) -> None:
    """Write the weights."""
    torch.manual_seed(0)
    llama(blocks).save_pretrained(folder, max_shard_size="200MB")


def memory(name: str) -> int:
    """Return a figure of ``/proc/self/status`` in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def cut(blocks: int, folder: Path, allowed: float, plain: bool) -> None:
    """Cut the model, and print what it took as JSON."""
    from accelerate import init_empty_weights

    tokens = torch.randint(TOKENS, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    with init_empty_weights():
        model = llama(blocks)
    tpsprune.extract(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)), torch.randn(64, 4))
    # Making a model on meta leaves a gigabyte reserved and unused, which would be above the limit's count.
    ctypes.CDLL(None).malloc_trim(0)
    base, data = memory("VmRSS"), memory("VmData")
    began = time.perf_counter()
    if plain:
        model = type(model).from_pretrained(folder)
        found = tpsprune.extract(model, tokens, HALF, widths="uniform", repair=False)
    else:
        bound = int(data + allowed * GB)
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
        found = tpsprune.extract(model, tokens, HALF, widths="uniform", offload=folder, weights=folder)
    seconds, after = time.perf_counter() - began, memory("VmRSS")
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    digest = hashlib.sha256(json.dumps(found.plan.to_json()).encode())
    for name, tensor in found.ticket.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    figures = {
        "weights_gb": sum(each.numel() * each.element_size() for each in model.parameters()) / GB,
        "imports_gb": base / GB,
        "imports_reserved_gb": data / GB,
        "peak_gb": (most - base) / GB,
        "after_gb": (after - base) / GB,
        "macs_share": found.macs_share,
        "seconds": seconds,
        "parts": {name: round(each, 1) for name, each in asdict(found.times).items()},
        "digest": digest.hexdigest()[:16],
    }
    print(json.dumps(figures))


def main() -> None:
    """Make the weights, cut the model in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--allowed", type=float, default=1.2, help="GB beyond the imports")
    parser.add_argument("--plain", action="store_true", help="without offload, and without a limit")
    parser.add_argument("--folder", type=Path, help="on a disk with some ten times the weights' bytes free")
    parser.add_argument("--step", choices=("make", "cut"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "make":
        make(options.blocks, options.folder)
    elif options.step == "cut":
        cut(options.blocks, options.folder, options.allowed, options.plain)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for step in ("make", "cut"):
                command = [sys.executable, "-m", "benchmarks.large", *sys.argv[1:]]
                done = subprocess.run(
                    [*command, "--step", step, "--folder", folder], check=True, stdout=subprocess.PIPE
                )
        figures = json.loads(done.stdout.splitlines()[-1])
        for name, value in figures.items():
            print(f"{name:>19} {value:.3f}" if isinstance(value, float) else f"{name:>19} {value}")


if __name__ == "__main__":
    main()
