"""The third job: the same recipe in several arms, pair by pair, until a claim can be made or refused."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from tpsprune.claims import assess
from tpsprune.claims.faults import faults_by_pair
from tpsprune.claims.ladder import FEWEST_PAIRS
from tpsprune.pipeline.arms import Found
from tpsprune.pipeline.compare_design import (
    DEFAULT_PAIRS,
    design_of,
    opened,
    refuse_what_cannot_run,
)
from tpsprune.pipeline.compare_run import Slot, answers_of, idling, run_of
from tpsprune.recipe import Recipe
from tpsprune.recipe.compare import AFTER_TICKET, order_of
from tpsprune.recipe.stop import NoRule, Stop
from tpsprune.records import (
    ArmBegun,
    ArmEnded,
    BrokenOff,
    Comparing,
    ComparisonRecord,
    Note,
    PhaseStarted,
)
from tpsprune.runs import Begun, ComparisonFolder, RunFolder, cannot_write, exclusive

__all__ = ["compare"]

PILOT_PAIRS = 3


def compare(
    recipe: Recipe,
    folder: ComparisonFolder,
    *,
    arms: tuple[str, ...],
    pairs: int | None = None,
    device: str = "auto",
    redo: bool = False,
    command: str = "",
) -> Iterator[Comparing]:
    """Run what is missing of a comparison; yield what happens. Leaving the loop loses the run under way.

    In each pair every arm runs once on the pair's seed, in an order drawn by lot for one pair and reversed
    for the next; then the models that were left answer in turns. Before the first run of a session a short
    one is made and thrown away. ``redo`` sets pairs with a fault of the measurement aside, which stay in the
    journal, and runs them anew: the rule looks at the meter, never at the result.

    Raises:
        TpspruneError: something asked for cannot be had, or the folder holds another comparison; no run has
            begun by then.
    """
    design = design_of(recipe, arms, pairs or DEFAULT_PAIRS, device, command)
    if not folder.exists:
        refuse_what_cannot_run(recipe, arms, device)
    try:
        folder.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder.runs, error) from error
    with exclusive(folder.runs / "lock", beside="write elsewhere with --out"):
        comparison = opened(folder, design, pairs)
        if redo:
            for pair, fault in faults_by_pair(comparison).items():
                folder.append("redo", {"pair": pair, "why": f"set aside: {fault}"})
            comparison = folder.read()[0]
        if not is_finished(comparison):
            if (asked := comparison.pairs_asked) <= FEWEST_PAIRS:
                fewest = FEWEST_PAIRS + 1
                yield Note(f"no claim can come of {asked} pairs: {fewest} are the fewest")
            yield from _warmed_up(recipe, folder, comparison, device)
        for pair in range(comparison.pairs_asked):
            yield from _pair(recipe, folder, pair, device)


def is_finished(comparison: ComparisonRecord) -> bool:
    """Return whether nothing is left to run."""
    return all(
        not due_in(comparison, pair) and not _answers_due(comparison, pair)
        for pair in range(comparison.pairs_asked)
    )


def due_in(comparison: ComparisonRecord, pair: int) -> tuple[str, ...]:
    """Return the arms of a pair that have not been run, in their order."""
    design = comparison.design
    order = order_of(design.arms, design.order_seed, pair)
    return tuple(arm for arm in order if comparison.run_of(arm, pair) is None)


def _answers_due(comparison: ComparisonRecord, pair: int) -> bool:
    """Return whether models of a pair have still to answer: those of arms that left one."""
    left = {run.arm for run in comparison.runs if run.pair == pair and not run.failure}
    metered = {(span.arm, span.batch) for span in comparison.inference if span.pair == pair}
    return any((arm, batch) not in metered for arm in left for batch in comparison.design.inference_batches)


def _pair(
    recipe: Recipe, folder: ComparisonFolder, pair: int, device: str
) -> Generator[Comparing, None, None]:
    comparison = folder.read()[0]
    design = comparison.design
    due = due_in(comparison, pair)
    if recipe.compare.idle_seconds and due and all(span.pair != pair for span in comparison.idle):
        yield PhaseStarted(phase="idle", title="idle baseline", total_steps=1)
        folder.append("idle", idling(pair, recipe))
    for arm in due:
        comparison = folder.read()[0]
        slot = Slot(
            arm=arm,
            seed=design.first_seed + pair,
            pair=pair,
            position=len(comparison.runs) + len(comparison.broken_off),
        )
        yield from _run(slot, recipe, folder, comparison, device)
    comparison = folder.read()[0]
    if _answers_due(comparison, pair):
        yield PhaseStarted(phase="answers", title=f"answers of pair {pair + 1}", total_steps=1)
        done = {(span.arm, span.batch) for span in comparison.inference if span.pair == pair}
        left = [run for run in comparison.runs if run.pair == pair and not run.failure]
        left.sort(key=lambda run: run.position)
        for span in answers_of(left, recipe, folder, device, done=done):
            folder.append("answers", span)
    if pair + 1 == PILOT_PAIRS and due:
        yield Note(_pilot_words(folder.read()[0]))


def _run(
    slot: Slot, recipe: Recipe, folder: ComparisonFolder, comparison: ComparisonRecord, device: str
) -> Generator[Comparing, None, None]:
    total = comparison.pairs_asked * len(comparison.design.arms)
    number = len(comparison.runs) + 1
    yield ArmBegun(arm=slot.arm, seed=slot.seed, number=number, total=total)
    ticket = comparison.run_of("ticket", slot.pair) if slot.arm in AFTER_TICKET else None
    if ticket is not None and ticket.failure:
        failure = "the ticket's run left nothing to be handed"
        run = replace(ticket, arm=slot.arm, position=slot.position, windows=(), course=(), failure=failure)
    else:
        found = None if ticket is None else Found.of(ticket, RunFolder(folder.path / ticket.folder))
        folder.append("begun", asdict(Begun(**asdict(slot), folder=slot.folder)))
        run = yield from run_of(slot, recipe, folder, found=found, device=device)
    folder.append("run", run)
    yield ArmEnded(
        run=run,
        number=number,
        total=total,
        seconds_left=_seconds_left(folder.read()[0]),
        quality=comparison.design.quality,
    )


def _warmed_up(
    recipe: Recipe, folder: ComparisonFolder, comparison: ComparisonRecord, device: str
) -> Generator[Comparing, None, None]:
    """Make one short ticket and throw it away: what a process does only once is on no arm's bill."""
    yield ArmBegun(arm="warm-up", seed=recipe.seed, number=0, total=0)
    short = replace(
        recipe,
        train=replace(recipe.train, epochs=1),
        stop=Stop(draw=NoRule(), end=NoRule()),
        prune=replace(recipe.prune, rounds=1),
        retrain=replace(recipe.retrain, rewind="none", epochs="rest"),
    )
    slot = Slot(arm="ticket", seed=recipe.seed, pair=0, position=0)
    with tempfile.TemporaryDirectory() as temporary:
        aside = ComparisonFolder(Path(temporary))
        aside.runs.mkdir()
        run = yield from run_of(slot, short, aside, found=None, device=device)
    thrown = BrokenOff(
        arm="warm-up",
        seed=recipe.seed,
        pair=None,
        position=len(comparison.runs) + len(comparison.broken_off),
        windows=run.windows,
        why="a short run to warm up, thrown away",
    )
    folder.append("broken-off", thrown)


def _seconds_left(comparison: ComparisonRecord) -> float:
    """Return about how long the rest will take: runs at the mean time of their arm, and the windows due."""
    design = comparison.design

    def mean(arms: set[str]) -> float:
        times = [sum(window.seconds for window in run.windows) for run in comparison.runs if run.arm in arms]
        return sum(times) / len(times) if times else 0.0

    left = 0.0
    for pair in range(comparison.pairs_asked):
        due = due_in(comparison, pair)
        left += sum(mean({arm}) or mean(set(design.arms)) for arm in due)
        if _answers_due(comparison, pair) or due:
            left += design.inference_seconds * len(design.inference_batches) * len(design.arms)
        if due and all(span.pair != pair for span in comparison.idle):
            left += design.idle_seconds
    return left


def _pilot_words(comparison: ComparisonRecord) -> str:
    needed = assess(comparison).needed
    if not needed:
        return "after three pairs nothing can be said of how many are needed: nothing was metered"
    words = ", ".join(
        f"{100 * each.saving_share:g} %: {'more than 1,000' if each.pairs is None else each.pairs}"
        for each in needed
    )
    return f"after three pairs: to see a saving of this size you need so many pairs ({words})"
