from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS_OF_ONE_TENSOR = 2**25 // 4096

TENSORS_MADE_AND_FREED = """
import resource
import torch
from tpsprune.recipe.train import Train
from tpsprune.training.device import prepare_process

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
prepare_process(Train(epochs=1), 0, torch.device("cpu"))
faults()
print(before, faults())
"""


@pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="another C library allocates"
)
def test_memory_once_freed_is_used_again_without_a_page_fault() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TENSORS_MADE_AND_FREED], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert before > 10 * FAULTS_OF_ONE_TENSOR, "each of 20 tensors of 32 MiB was a fresh mapping"
    assert after < FAULTS_OF_ONE_TENSOR
