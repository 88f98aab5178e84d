"""A comparison on the machines of a cluster: each pair whole on one of them, and alone there.

So what distinguishes machines drops out of the ratio of a pair's arms. Pairs are pooled where machines are of
one kind and meter in the same way, with the same power model: else one saving would be of several things.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tpsprune import energy
from tpsprune.errors import WorkerError
from tpsprune.jobs import run_afar
from tpsprune.jobs.address import Address
from tpsprune.jobs.alike import agree, find_differences, refuse_another
from tpsprune.loop.comparison import Comparison, design_of, list_due
from tpsprune.loop.meter import Meter
from tpsprune.pipeline.compare import (
    DEFAULT_PAIRS,
    PILOT_PAIRS,
    adapt_to_arms,
    describe_weights,
    estimate_seconds_left,
    lacks_inference,
    note_too_few,
    pilot_note,
    read_encoder,
    refuse_what_cannot_run,
    run_pair,
    warm_up,
)
from tpsprune.recipe import Recipe, dumps
from tpsprune.records import ArmEnded, Comparing, Design, Note, dump, load
from tpsprune.records import ComparisonRecord as Record
from tpsprune.records.serial import shorten
from tpsprune.runs import ComparisonFolder, cannot_write, machine_facts, versions
from tpsprune.runs.comparison import Line, load_line
from tpsprune.training import choose_device

if TYPE_CHECKING:
    from tpsprune.jobs.cluster import Cluster

LOCK: Final = "tpsprune-metering.lock"
"""In the temporary folder of a machine: whoever makes a pair there holds it, and the next one waits."""
MADE_THERE: Final = frozenset({"run", "idle", "inference", "steps", "broken-off"})
"""Kinds of lines that a machine sends for a pair."""


def compare_on_machines(
    recipe: Recipe,
    folder: ComparisonFolder,
    machines: Address,
    *,
    arms: tuple[str, ...],
    pairs: int | None = None,
    source: Path | None = None,
    device: str = "auto",
    redo: bool = False,
    command: str = "",
) -> Iterator[Comparing]:
    """Run what is missing of a comparison, a pair at a time on each machine; yield what happens.

    As ``compare`` does on this machine: the same arms in the same order on the same seeds, by the same code,
    after a warm-up of its own for each pair. A pair is in the journal once all of it is. One that is lost, by
    an interrupt or with its machine, is in the journal as a run of the baseline that was broken off.
    Models stay on the machine that made them.

    Raises:
        WorkerError: the cluster is not there, its machines are not alike, or a pair has ended two workers.
        TpspruneError: as ``compare``; what cannot run is found out on every machine, before the first pair.
    """
    # Here, since it is there with the extra alone.
    from tpsprune.jobs.cluster import connect

    if machines.workers > 1:
        raise WorkerError(f"{machines.text} is one machine, and a pair is alone on it: use dask:local:1")
    recipe = adapt_to_arms(recipe, arms)
    with ExitStack() as stack:
        cluster = stack.enter_context(connect(machines, alone=True))
        facts = agree(
            cluster.name, cluster.ask_each(partial(describe_place, recipe, arms, source, device), None)
        )
        design = replace(
            design_of(
                name=recipe.name,
                arms=arms,
                pairs=pairs or DEFAULT_PAIRS,
                first_seed=recipe.seed,
                required_accuracy=recipe.task.required_accuracy,
                rules=recipe.compare,
                text=dumps(recipe),
                device="cpu",
                command=command,
                weights=facts["weights"],
            ),
            device=facts["device"],
            machine=facts["machine"],
            versions=facts["versions"],
        )
        comparison = Comparison.of_design(folder, design, pairs)
        stack.enter_context(comparison.held())
        comparison.give_up_begun()
        if redo:
            comparison.redo()
        _refuse_other_meters(folder, comparison.record, facts)
        yield from _run_pairs(recipe, comparison, cluster, facts, source, device)


def _run_pairs(
    recipe: Recipe,
    comparison: Comparison,
    cluster: Cluster,
    facts: Mapping[str, Any],
    source: Path | None,
    device: str,
) -> Iterator[Comparing]:
    record = comparison.record
    if _due_pairs(record):
        yield from note_too_few(record)
    make = partial(make_pair, recipe, dump(record.design), source, device)

    def submit(do: Any, pair: int) -> Any:
        comparison.begin_pair(pair)
        return cluster.submit(do, pair)

    made = run_afar(
        lambda: _due_pairs(comparison.record),
        make,
        submit,
        cluster.count_places,
        lambda pair: f"pair {pair + 1}",
    )
    for raw in made:
        refuse_another(cluster.name, raw["facts"], {name: facts[name] for name in raw["facts"]})
        lines = _read_lines(cluster.name, raw["lines"], raw["pair"])
        runs = comparison.add_pair(lines, raw["id"])
        record = comparison.record
        total = record.pairs_asked * len(record.design.arms)
        left = estimate_seconds_left(record) / max(1, cluster.count_places())
        for number, run in enumerate(runs, len(record.runs) - len(runs) + 1):
            quality = record.design.quality
            yield ArmEnded(run=run, number=number, total=total, seconds_left=left, quality=quality)
        yield Note(
            f"pair {raw['pair'] + 1} was made on machine {raw['id']}; its models are there: {raw['folder']}"
        )
        if len({run.pair for run in record.runs}) == PILOT_PAIRS:
            yield Note(pilot_note(comparison))


def _due_pairs(record: Record) -> list[int]:
    """Return the pairs of which nothing is there yet.

    Raises:
        WorkerError: a pair is there in part: what it needs lies on the machine that began it.
    """
    due = []
    for pair in range(record.pairs_asked):
        missing = len(list_due(record, pair))
        if missing == len(record.design.arms):
            due.append(pair)
        elif missing or lacks_inference(record, pair):
            raise WorkerError(
                f"pair {pair + 1} was begun on one machine, and cannot go on at another: go on without "
                "--machines until it is done"
            )
    return due


def _read_lines(name: str, raw: list[dict[str, Any]], pair: int) -> list[tuple[str, Line]]:
    """Return the lines of a pair as records.

    Raises:
        WorkerError: one is none, or of another pair.
    """
    lines: list[tuple[str, Line]] = []
    for each in raw:
        try:
            if each["kind"] not in MADE_THERE:
                raise ValueError(f"its kind is {shorten(each['kind'])}")  # noqa: TRY301 -- told as the others are
            line = load_line(each)
        except ValueError as error:
            raise WorkerError(f"{name}: a worker sent what is no line of a comparison: {error}") from error
        if getattr(line, "pair", None) not in {pair, None}:
            raise WorkerError(f"{name}: a worker sent a line of another pair than {pair + 1}")
        lines.append((each["kind"], line))
    return lines


def _refuse_other_meters(folder: ComparisonFolder, record: Record, facts: Mapping[str, Any]) -> None:
    """Refuse to add pairs to some that were metered in another way.

    Raises:
        WorkerError: they were; names the first difference.
    """
    for run in record.runs:
        for difference in find_differences(dump(run.method), facts["method"], "method"):
            raise WorkerError(
                f"{folder.path} holds pairs that were metered in another way, and they are not pooled: "
                f"{difference.tell()}; write elsewhere with --out"
            )


def describe_place(
    recipe: Recipe, arms: tuple[str, ...], source: Path | None, device: str, _: None
) -> dict[str, Any]:
    """Return what of this machine must be the same on all, once every arm is found to be able to run here.

    Raises:
        TpspruneError: an arm cannot run here, or nothing can be metered as requested.
    """
    encoder = read_encoder(recipe, arms, source)
    refuse_what_cannot_run(recipe, arms, encoder, device)
    return {**_facts(recipe, device), "weights": describe_weights(recipe, encoder)}


def _facts(recipe: Recipe, device: str) -> dict[str, Any]:
    with Meter(energy.build(recipe.energy, 0)) as meter:
        method = dump(meter.method)
    return {
        "machine": machine_facts(),
        "versions": versions(),
        "device": choose_device(device).type,
        "method": method,
    }


def make_pair(
    recipe: Recipe, raw_design: Mapping[str, Any], source: Path | None, device: str, pair: int
) -> dict[str, Any]:
    """Make a pair on this machine, alone, in a new folder below ``reports``; return its lines as JSON."""
    design = load(Design, raw_design)
    encoder = read_encoder(recipe, design.arms, source)
    place = Path("reports", f"{design.name}-pairs").absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = ComparisonFolder(Path(tempfile.mkdtemp(prefix=f"{pair + 1:03}-", dir=place)))
    except OSError as error:
        raise cannot_write(place, error) from error
    folder.append("design", design)
    comparison = Comparison.of_design(folder, design)
    with alone(), comparison.held():
        for _ in warm_up(recipe, folder, comparison.record, device):
            pass
        for _ in run_pair(recipe, folder, comparison, pair, encoder, device):
            pass
    lines, _ = folder.journal.read()
    return {
        "pair": pair,
        "lines": [line for line in lines if line["kind"] in MADE_THERE],
        "facts": _facts(recipe, device),
        "id": identify_machine(f"{design.begun} {design.recipe_sha256}"),
        "folder": str(folder.path),
    }


@contextmanager
def alone() -> Iterator[None]:
    """Hold this machine's lock: pairs of other workers on it wait until it is let go of.

    It does not see other programs; their share of the processors is in each window. A process that is killed
    lets go of it. Containers with temporary folders of their own do not see one another.

    Raises:
        CannotWriteError: the lock can be neither made nor opened.
    """
    lock = Path(tempfile.gettempdir(), LOCK)
    try:
        # Not written: another user may have made it.
        try:
            handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            handle = os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
    except OSError as error:
        raise cannot_write(lock, error) from error


def identify_machine(salt: str) -> str:
    """Return a hash that tells this machine from others under the same salt, and names none.

    Told by its host name and the identity its system was installed with: containers count as machines.
    """
    installed = Path("/etc/machine-id")
    identity = installed.read_text(encoding="utf-8") if installed.is_file() else ""
    return hashlib.sha256(f"{salt}\n{platform.node()}\n{identity}".encode()).hexdigest()[:12]
