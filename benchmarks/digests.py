"""The ticket of every shipped recipe as a digest: equal before and after a change that changes no figure.

Each recipe runs with one thread and a fixed seed, shortened so that all take minutes; the digest is of
the ticket's tensors by name, shape and bytes.

    python benchmarks/digests.py --write     # keeps reports/digests.json for this machine's kernels
    python benchmarks/digests.py             # compares with it; exit code 1 where a ticket differs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "reports" / "digests.json"
SHORTENED = {
    "autoencoder-digits": [],
    "cifar10": ["train.epochs=1", "task.data.train_limit=640"],
    "diabetes": [],
    "digits": [],
    "efficientnet-lite0": [],
    "fashion-mnist": ["train.epochs=1", "watch.every_steps=100", "stop.draw_by_share=0.5"],
    "gpt2-text": ["train.epochs=1", "watch.every_steps=30"],
    "llama-text": ["train.epochs=1", "watch.every_steps=30"],
    "modular-addition": ["train.epochs=400"],
    "vit-digits": ["train.epochs=8"],
}
COMMON = ["train.threads=1", "energy.meter=none"]


def digest_of(path: Path) -> str:
    """Return a digest of a safetensors file's tensors, whatever their order and the file's metadata."""
    digest = hashlib.sha256()
    for name, array in sorted(load_file(path).items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def run(name: str, settings: list[str], folder: Path) -> str:
    """Return the digest of a recipe's ticket, or the last line of what went wrong."""
    command = [sys.executable, "-m", "tpsprune", "train", str(ROOT / "recipes" / f"{name}.toml")]
    for setting in [*COMMON, *settings]:
        command += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--out", str(folder), "--quiet"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    tickets = sorted(folder.glob("*/ticket.safetensors"))
    return digest_of(tickets[0]) if tickets else f"none: {(done.stderr.strip().splitlines() or ['?'])[-1]}"


def main() -> None:
    """Run every recipe, print its digest, keep or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(SHORTENED))
    parser.add_argument("--cifar10", default="cifar10.zip", help="the images of the recipe cifar10")
    options = parser.parse_args()
    SHORTENED["cifar10"].append(f"task.data.path={Path(options.cifar10).resolve()}")
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    differ = False
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            found = run(name, SHORTENED[name], Path(folder))
        same = kept.get(name) == found
        differ |= not same
        print(
            f"{name:20} {found}{'' if options.write or same else '  differs from ' + str(kept.get(name))}",
            flush=True,
        )
        if options.write:
            kept[name] = found
    if options.write:
        KEPT.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sys.exit(int(differ and not options.write))


if __name__ == "__main__":
    main()
