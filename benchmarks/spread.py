"""One run in one process and in two: processor seconds of each part, bytes sent, equal bits or not.

    python benchmarks/spread.py                        # writes reports/spread.md; ten minutes on two cores
    python benchmarks/spread.py --recipes digits --turns 1 --report /tmp/spread.md

Each recipe is trained for some steps, read, scored, cut and trained on, all in two shards: by one process,
and by two that torchrun starts, by turns. Processor seconds are those of one process, the busier of two; they
are ratios of one run of this script, on one thread each, and say nothing of wall time. Bytes are those that
each process hands to a collective.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "reports" / "spread.md"
RECIPES: Final = {
    "digits": 60,
    "fashion-mnist": 40,
    "vit-digits": 30,
    "llama-text": 30,
}
"""Steps before the cut; as many after it."""
SETTINGS: Final = ("train.threads=1", "energy.meter=none", "train.precision=float32")
PARTS: Final = ("training", "readings", "scoring", "extraction")


def work(name: str, out: Path) -> None:
    """Run in each process: one recipe, its parts timed; the figures go to a file of the rank."""
    import torch
    from torch import distributed

    from tpsprune import pruning, recipe, training
    from tpsprune.energy import family_cpu_seconds
    from tpsprune.loop.watch import Watch
    from tpsprune.pipeline.stage import StageSettings, train_steps
    from tpsprune.pipeline.ticket import extraction_inputs
    from tpsprune.pipeline.workbench import set_up
    from tpsprune.recipe.stop import NoRule

    seconds = dict.fromkeys(PARTS, 0.0)
    sent = dict.fromkeys(PARTS, 0)
    part = PARTS[0]

    def counted(call: Any) -> Any:
        def count(first: Any, *rest: Any, **more: Any) -> Any:
            payload = rest[0] if isinstance(first, list) else first  # all_gather takes where to write first
            sent[part] += payload.numel() * payload.element_size()
            return call(first, *rest, **more)

        return count

    for collective in ("all_reduce", "broadcast", "all_gather"):
        setattr(distributed, collective, counted(getattr(distributed, collective)))

    @contextmanager
    def timed(now: str) -> Iterator[None]:
        nonlocal part
        part, begun = now, family_cpu_seconds()
        yield
        seconds[now] += family_cpu_seconds() - begun

    read = recipe.read(str(ROOT / "recipes" / f"{name}.toml"), SETTINGS)
    steps = RECIPES[name]
    with training.gathered("cpu") as started:
        peers = started.with_shards(2)
        with set_up(read, "cpu", peers=peers) as bench:
            state = bench.begin(bench.new_model(), "dense", NoRule())
            whole = StageSettings(
                phase="train", title="", rule=NoRule(), last_step=steps, total_steps=2 * steps
            )
            with timed("training"):
                for _ in train_steps(bench, state, whole):
                    pass
            ignored = read.prune.ignored_layers
            with (
                timed("readings"),
                Watch(
                    state.model,
                    list(bench.watch_batches),
                    bench.watch_labels,
                    signals=bench.panel,
                    every_steps=1,
                    ignored_layers=ignored,
                ) as watch,
            ):
                for step in (1, 2, 3):
                    watch.step(step)
            with timed("scoring"):
                bench.score(state.model, bench.dataset.validation)
            inputs = extraction_inputs(bench, None, read.prune.units, read.prune.target)  # type: ignore[arg-type]
            with timed("extraction"):
                cut = pruning.extract(state.model, bench.prune_batches, read.prune, **inputs, peers=peers)
            ticket = bench.execution.place(cut.ticket)
            moments = pruning.carry_state(training.state_by_name(state.optimizer, state.model), cut.plan)
            optimizer = training.make_optimizer(ticket, read.train)
            training.load_state_by_name(optimizer, ticket, moments)
            cut_digest = digest(torch, ticket.state_dict())
            after = training.fit(
                ticket,
                optimizer,
                bench.dataset.train.inputs,
                bench.dataset.train.labels,
                prepare=bench.dataset.prepare,
                settings=read.train,
                execution=bench.execution,
                seed=read.seed,
                first_step=steps,
                last_step=2 * steps,
                total_steps=2 * steps,
                objective=bench.objective,
                peers=peers,
            )
            for _ in after:
                pass
            state_of = training.state_by_name(optimizer, ticket)
            flat = {f"{owner}/{key}": each for owner, own in state_of.items() for key, each in own.items()}
            plan = json.dumps(cut.plan.to_json()["groups"], sort_keys=True)
            found = {
                "seconds": seconds,
                "sent": sent,
                "digests": {
                    "plan": hashlib.sha256(plan.encode()).hexdigest()[:12],
                    "ticket": cut_digest,
                    "weights at the end": digest(torch, ticket.state_dict()),
                    "optimiser state": digest(torch, flat),
                },
            }
            (out / f"rank-{peers.rank}.json").write_text(json.dumps(found), encoding="utf-8")


def digest(torch: Any, tensors: Any) -> str:
    """Return a digest of tensors, by name and bytes."""
    found = hashlib.sha256()
    for name, each in sorted(tensors.items()):
        found.update(f"{name} {tuple(each.shape)}".encode())
        found.update(
            each.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if each.ndim else b""
        )
        found.update(str(each.item()).encode() if not each.ndim else b"")
    return found.hexdigest()[:12]


def run(name: str, processes: int) -> list[dict[str, Any]]:
    """Return the figures of each process of one run."""
    with tempfile.TemporaryDirectory() as folder:
        own = [str(Path(__file__)), "--work", name, "--into", folder]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else ()), *own]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{name} in {processes} processes ended with {done.returncode}:\n{done.stderr}")
        return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]


def measure(name: str, turns: int) -> tuple[list[str], bool]:
    """Return the rows of one recipe, and whether all bits are equal."""
    pairs = []
    for turn in range(turns):
        one, two = (run(name, processes) for processes in ((1, 2) if turn % 2 == 0 else (2, 1)))
        pairs.append((one[0], two) if turn % 2 == 0 else (two[0], one))
        print(f"{name}: turn {turn + 1} of {turns}", flush=True)
    digests = {json.dumps(each["digests"], sort_keys=True) for one, two in pairs for each in (one, *two)}
    rows = []
    for part in PARTS:
        alone = median(one["seconds"][part] for one, _ in pairs)
        busier = [max(each["seconds"][part] for each in two) / one["seconds"][part] for one, two in pairs]
        summed = [sum(each["seconds"][part] for each in two) / one["seconds"][part] for one, two in pairs]
        sent = pairs[0][1][0]["sent"][part]
        rows.append(
            f"| {name} | {part} | {alone:.2f} | {median(busier):.2f} "
            f"| {min(busier):.2f} to {max(busier):.2f} "
            f"| {median(summed):.2f} | {sent / 1e6:.2f} |"
        )
    equal = len(digests) == 1
    found = json.loads(digests.pop())
    words = ", ".join(f"{what} `{value}`" for what, value in found.items()) if equal else "**they differ**"
    return [*rows, f"| {name} | bits | {words} | | | | |"], equal


def main() -> None:
    """Measure every recipe, and write the page; exit code 1 where bits differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--turns", type=int, default=3, help="pairs of runs of each recipe (default: 3)")
    parser.add_argument("--report", type=Path, default=REPORT, help="file to write")
    parser.add_argument("--work", choices=list(RECIPES), help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.work:
        work(options.work, options.into)
        return
    found = [measure(name, options.turns) for name in options.recipes]
    rows = [row for rows, _ in found for row in rows if "| bits |" not in row]
    bits = [row for rows, _ in found for row in rows if "| bits |" in row]
    head = (
        "| recipe | part | one process, s | two: the busier, share of one | from to | two: sum, share of one "
        "| sent, MB |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    named = "\n".join(f"- {row.split('|')[1].strip()}: {row.split('|')[3].strip()}" for row in bits)
    from tpsprune.runs import write_text_atomically

    write_text_atomically(
        options.report,
        f"# One run in one process and in two\n\n`python benchmarks/spread.py --turns {options.turns}`: "
        f"processor seconds, medians of {options.turns} pairs of runs by turns, two shards each, one thread "
        "a process, gloo on one machine. Training is that of "
        + ", ".join(f"{steps} steps of {name}" for name, steps in RECIPES.items() if name in options.recipes)
        + "; readings are three of the recipe's signals; the extraction is without repair, which one process "
        "makes. Wall times say nothing here: the processes share two cores with whatever else runs.\n\n"
        + head
        + "\n".join(rows)
        + "\n\nEqual in one process and two, in every run (digests):\n\n"
        + named
        + "\n",
    )
    if not all(equal for _, equal in found):
        raise SystemExit("the bits differ")


if __name__ == "__main__":
    main()
