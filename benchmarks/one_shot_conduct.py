"""How the one-shot benchmark is conducted: what is options for, in which order, on how many processes."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.one_shot_cuts import DENSE, cut_rows
from benchmarks.one_shot_heal import HEAL_METHODS, heal_rows
from benchmarks.one_shot_methods import methods
from benchmarks.one_shot_report import TIME, Setting, page
from benchmarks.one_shot_rows import Journal, Row, fingerprint
from benchmarks.one_shot_speed import BATCHES, devices, speed_method, speed_rows
from benchmarks.one_shot_table import beaten
from benchmarks.zoo.places import CACHE, Missing
from benchmarks.zoo.tasks import TASKS
from benchmarks.zoo.trained import fresh, trained, weights_file

ROOT = Path(__file__).parents[1]
SHARES = (0.75, 0.5, 0.25)
PARTS = ("cuts", "heal", "speed", "time")
NETS = ("digits", "fashion", "mnist", "resnet8", "vit", "modular")
HEAL_NETS = ("digits", "fashion", "resnet8", "resnet20")
Key = tuple[str, int, str, float]
Rows = Callable[[list[Key]], Iterator[Row]]


def main() -> None:
    """Measure what is not in the journal yet, print the page, write the report."""
    options = _arguments()
    torch.set_num_threads(1)
    nets = _at_hand(options.nets.split(","))
    seeds = range(options.seeds)
    if options.train_only:
        for net in nets:
            for seed in seeds:
                trained(TASKS[net], seed)
        return
    kind = f"{'quick-' if options.quick else ''}heal{options.heal_steps}"
    journal = CACHE / f"one_shot-{fingerprint(ROOT)}-{kind}.jsonl"
    started = time.perf_counter()
    parts = [] if options.page else options.parts.split(",")
    if "cuts" in parts:
        # Seed 0 settles which of its two widths each baseline has on the other seeds.
        _together(
            [(cut_rows, _cut_keys(net, 0, options.quick, ())) for net in nets], journal, options.workers
        )
    settled = Journal(journal).rows
    jobs: list[tuple[Rows, list[Key]]] = []
    if "cuts" in parts:
        jobs += [
            (cut_rows, _cut_keys(net, seed, options.quick, settled)) for seed in seeds[1:] for net in nets
        ]
    if "heal" in parts:
        heal = functools.partial(heal_rows, steps=options.heal_steps)
        for net in (net for net in nets if net in HEAL_NETS):
            jobs.append((heal, [(net, 0, method, share) for share in SHARES for method in HEAL_METHODS]))
    _together(jobs, journal, options.workers)
    # Nothing else may run while something is timed.
    if "speed" in parts:
        for net in nets:
            methods_timed = [speed_method(device, batch) for device in devices() for batch in BATCHES]
            keys = [(net, 0, method, share) for share in SHARES for method in methods_timed]
            _conduct(functools.partial(speed_rows, seconds=0.5 if options.quick else 2.0), keys, journal)
    if "time" in parts:
        _conduct(_timed, [(TIME, 0, "time", 0.5)], journal)
    rows = Journal(journal).rows
    setting = Setting(
        command=shlex.join(
            ["python", "benchmarks/one_shot.py", *(word for word in sys.argv[1:] if word != "--page")]
        ),
        machine=_machine(),
        nets=tuple(nets),
        shares=SHARES,
        heal_steps=options.heal_steps,
    )
    text = page(rows, setting)
    print(text)
    print(f"{time.perf_counter() - started:.0f} s this time; journal {journal.name}")
    if not options.quick:
        _write(ROOT / "reports", text, rows, setting)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/one_shot.py", description="Accuracy straight after the cut, no retraining."
    )
    parser.add_argument("--nets", default="", help=f"of {', '.join(TASKS)}; else all that are at hand")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", default="", help=f"of {', '.join(PARTS)}; else all")
    parser.add_argument("--quick", action="store_true", help="digits, few baselines; writes no report")
    parser.add_argument("--time", action="store_true", help="the same as --parts time")
    parser.add_argument("--train-only", action="store_true", help="train and keep the dense nets, no more")
    parser.add_argument("--page", action="store_true", help="write the page of what is measured already")
    parser.add_argument("--heal-steps", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    quick_parts = "cuts,heal,speed"
    options.parts = (
        "time" if options.time else options.parts or (quick_parts if options.quick else ",".join(PARTS))
    )
    options.nets = options.nets or ("digits" if options.quick else ",".join(_default_nets()))
    options.seeds = min(options.seeds, 2) if options.quick else options.seeds
    options.heal_steps = options.heal_steps or (50 if options.quick else 200)
    for names, known in ((options.nets, TASKS), (options.parts, PARTS)):
        if strange := sorted(set(names.split(",")) - set(known)):
            parser.error(f"{strange[0]}: not one of {', '.join(known)}")
    return options


def _default_nets() -> tuple[str, ...]:
    """Put ResNet-20 in ResNet-8's place where there is a GPU, or where it has been trained on one."""
    ready = torch.cuda.is_available() or weights_file(TASKS["resnet20"], 0).is_file()
    return tuple("resnet20" if net == "resnet8" and ready else net for net in NETS)


def _at_hand(names: Iterable[str]) -> list[str]:
    found = []
    for name in names:
        try:
            fresh(TASKS[name], 0)
        except Missing as missing:
            print(f"left out, {name}: {missing}", flush=True)
        else:
            found.append(name)
    return found


def _cut_keys(net: str, seed: int, quick: bool, settled: Sequence[Row]) -> list[Key]:
    model = fresh(TASKS[net], seed)
    batch_norm = any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    chosen = methods(batch_norm=batch_norm, quick=quick, first=seed == 0)
    cuts = [(each, share) for share in SHARES for each in chosen if not beaten(settled, net, each, share)]
    return [(net, seed, DENSE, 1.0), *((net, seed, each.key, share) for each, share in cuts)]


def _together(jobs: list[tuple[Rows, list[Key]]], journal: Path, workers: int) -> None:
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in [pool.submit(_conduct, rows, keys, journal) for rows, keys in jobs]:
            future.result()


def _conduct(rows: Rows, keys: list[Key], journal: Path) -> None:
    """Compute the rows that are missing and write each down as it comes."""
    torch.set_num_threads(1)
    book = Journal(journal)
    missing = book.missing(keys)
    if not missing:
        return
    try:
        for row in rows(missing):
            book.add(row)
            result = f"{row.score:.4f}" if row.score is not None else row.problem or "done"
            print(f"{row.net} {row.seed} {row.share:g} {row.method}: {result}", flush=True)
    except Missing as absent:
        print(f"left out, {keys[0][0]}: {absent}", flush=True)


def _timed(keys: list[Key]) -> Iterator[Row]:
    for net, seed, method, share in keys:
        # A process of its own with all threads: memory is counted by process.
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        command = [sys.executable, "-m", "benchmarks.one_shot_time"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            error = (done.stderr.strip().splitlines() or ["no message"])[-1]
            yield Row(net=net, seed=seed, method=method, share=share, problem=error)
            continue
        more = json.loads(done.stdout.splitlines()[-1])
        yield Row(net=net, seed=seed, method=method, share=share, score=more["ratio"], more=more)


def _machine() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores ({platform.machine()}){gpu}, PyTorch {torch.__version__}"


def _write(folder: Path, text: str, rows: Iterable[Row], setting: Setting) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "one_shot.md").write_text(text, encoding="utf-8")
    record = {
        "schema": "tpsprune.one-shot/1",
        "setting": asdict(setting),
        "rows": [asdict(row) for row in rows],
    }
    (folder / "one_shot.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
