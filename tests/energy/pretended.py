"""A machine put together for the purpose: one board whose counter is moved by hand, and own RAPL files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "fake_modules"

RAPL_RANGE_MICROJOULES = 262_143_328_850


def run_pretended(tmp_path: Path, body: str) -> Any:
    """Run a program on the pretended machine and return the JSON that it prints.

    In a process of its own: codecarbon looks for hardware once, when it is imported.
    """
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": f"{FILES}:{ROOT}",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def rapl_package(root: Path, microjoules: int = 1_000_000) -> Path:
    """Lay out one RAPL package as Linux shows it, below ``root``."""
    package = root / "intel-rapl" / "intel-rapl:0"
    package.mkdir(parents=True)
    (package / "name").write_text("package-0\n")
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text(f"{RAPL_RANGE_MICROJOULES}\n")
    return package
