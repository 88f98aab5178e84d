"""The third job: the same recipe in several arms, pair by pair, until a claim can be made or refused."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from tpsprune import energy
from tpsprune.claims.ladder import FEWEST_PAIRS
from tpsprune.errors import ArtifactError, Fault, RecipeError, VariantError
from tpsprune.loop.comparison import Comparison, design_of, list_due
from tpsprune.pipeline.arms import arm_recipe, measure_idle, measure_inference, measure_run
from tpsprune.pipeline.equal_cost import TicketFacts, measure_steps
from tpsprune.pipeline.load import Weights, describe_initial_weights, read_weights
from tpsprune.pipeline.transfer import OPTION, move_encoder, require_classes
from tpsprune.pipeline.workbench import set_up
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.compare import DEFAULT_SIZES, EQUAL_COST, LEADERS, SIZED, TRANSFERRED
from tpsprune.recipe.schema import rule_faults
from tpsprune.recipe.stop import NoRule, Stop
from tpsprune.records import ArmBegun, ArmEnded, BrokenOff, Comparing, Note, PhaseStarted
from tpsprune.records import ComparisonRecord as Record
from tpsprune.runs import Begun, ComparisonFolder, beside

DEFAULT_PAIRS: Final = 6
PILOT_PAIRS: Final = 3


def compare(
    recipe: Recipe,
    folder: ComparisonFolder,
    *,
    arms: tuple[str, ...],
    pairs: int | None = None,
    source: Path | None = None,
    device: str = "auto",
    redo: bool = False,
    command: str = "",
) -> Iterator[Comparing]:
    """Run what is missing of a comparison; yield what happens. Leaving the loop loses the run under way.

    In each pair every arm runs once on the pair's seed, in a random order for one pair, reversed for
    the next; then inference of the models is metered in turns. Before the first run of a session a short
    one is made and discarded. ``redo`` sets pairs with a fault of the measurement aside, which stay in
    the journal, and repeats them: the rule reads the meter, never the result. ``source``: the trained
    encoder of arms that begin with one, as ``transfer`` takes it, but no ticket.

    Raises:
        TpspruneError: something requested is not available, or the folder holds another comparison; no run
            has begun by then.
    """
    recipe = adapt_to_arms(recipe, arms)
    encoder = read_encoder(recipe, arms, source)
    design = design_of(
        name=recipe.name,
        arms=arms,
        pairs=pairs or DEFAULT_PAIRS,
        first_seed=recipe.seed,
        required_accuracy=recipe.task.required_accuracy,
        rules=recipe.compare,
        text=dumps(recipe),
        device=device,
        command=command,
        weights=describe_weights(recipe, encoder),
    )
    if not folder.exists:
        refuse_what_cannot_run(recipe, arms, encoder, device)
    comparison = Comparison.of_design(folder, design, pairs)
    with comparison.held():
        comparison.give_up_begun()
        if redo:
            comparison.redo()
        record = comparison.record
        if list_due(record) or any(lacks_inference(record, pair) for pair in range(record.pairs_asked)):
            yield from note_too_few(record)
            yield from warm_up(recipe, folder, record, device)
        for pair in range(record.pairs_asked):
            due = bool(list_due(comparison.record, pair))
            yield from run_pair(recipe, folder, comparison, pair, encoder, device)
            if pair + 1 == PILOT_PAIRS and due:
                yield Note(pilot_note(comparison))


def adapt_to_arms(recipe: Recipe, arms: tuple[str, ...]) -> Recipe:
    """Return the recipe as these arms need it.

    Raises:
        RecipeError: it asks for what no comparison has.
    """
    if recipe.prune.low_rank:
        message = "the arms from scratch have units alone; expected false in a comparison"
        raise RecipeError(recipe.name, [Fault("prune.low_rank", message)])
    if set(arms) & set(SIZED):
        # Inference is not metered: the arms leave models of the same shapes.
        sizes = tuple(sorted(recipe.compare.sizes or DEFAULT_SIZES, reverse=True))
        recipe = replace(recipe, compare=replace(recipe.compare, sizes=sizes, inference_seconds=0.0))
    return recipe


def read_encoder(recipe: Recipe, arms: tuple[str, ...], source: Path | None) -> Weights | None:
    """Return the trained encoder that arms begin with, read onto the CPU; none where no arm does.

    Raises:
        RecipeError: an arm needs one and none is given, or none does; the task has no classes.
        ArtifactError: it is not there, damaged, or a ticket.
    """
    moved = [arm for arm in arms if arm in TRANSFERRED]
    if source is None or not moved:
        if moved:
            message = (
                f"'{moved[0]}' begins with a trained encoder: {OPTION} names the run or file that has it"
            )
            raise RecipeError(recipe.name, [Fault("", message)])
        if source is not None:
            message = f"no arm begins with a trained encoder: name one of {', '.join(TRANSFERRED)}"
            raise RecipeError(OPTION, [Fault("", message)])
        return None
    require_classes(recipe)
    encoder = read_weights(source, OPTION)
    if encoder.plan is not None:
        message = (
            f"{OPTION} {source} is a ticket: a comparison begins with the dense model that it was cut from"
        )
        raise ArtifactError(message)
    return encoder


def describe_weights(recipe: Recipe, encoder: Weights | None) -> str:
    """Return what tells the weights that runs begin with from others; empty where they are drawn."""
    weights = (describe_initial_weights(recipe), encoder.describe() if encoder else "")
    return "\n".join(part for part in weights if part)


def run_pair(
    recipe: Recipe,
    folder: ComparisonFolder,
    comparison: Comparison,
    pair: int,
    encoder: Weights | None,
    device: str,
) -> Generator[Comparing, None, None]:
    """Run what is missing of a pair: idle, every arm in its random order, steps and inference in turns."""
    record = comparison.record
    due = list_due(record, pair)
    if recipe.compare.idle_seconds and due and all(span.pair != pair for span in record.idle):
        yield PhaseStarted(phase="idle", title="idle baseline", total_steps=1)
        folder.append("idle", measure_idle(pair, recipe))
    yield from _measure_steps_if_due(recipe, folder, comparison, pair, device)
    for _ in comparison.due(pair=pair):
        yield from _run_arm(recipe, folder, comparison, encoder, device)
        yield from _measure_steps_if_due(recipe, folder, comparison, pair, device)
    record = comparison.record
    if lacks_inference(record, pair):
        yield PhaseStarted(phase="inference", title=f"inference of pair {pair + 1}", total_steps=1)
        done = {(span.arm, span.batch) for span in record.inference if span.pair == pair}
        left = [run for run in record.runs if run.pair == pair and not run.failure]
        left.sort(key=lambda run: run.position)
        for span in measure_inference(left, recipe, folder, device, done=done):
            folder.append("inference", span)


def _measure_steps_if_due(
    recipe: Recipe, folder: ComparisonFolder, comparison: Comparison, pair: int, device: str
) -> Generator[Comparing, None, None]:
    """Measure what a step of each opponent costs, once the run it depends on shows what that may be.

    A missing folder of that run is reported here, before a run that needs it begins.
    """
    record = comparison.record
    leaders = {LEADERS[arm] for arm, _ in list_due(record, pair) if arm in LEADERS}
    leader = record.run_of(leaders.pop(), pair) if leaders else None
    if leader is None or leader.failure:
        return
    facts = TicketFacts.all_of(leader, folder.path)
    arms = [arm for arm in EQUAL_COST if arm in record.design.arms]
    if arms and all(span.pair != pair for span in record.steps):
        yield PhaseStarted(
            phase="steps", title="steps of each opponent", total_steps=2 * len(arms) * len(facts)
        )
        dense = arm_recipe("dense", replace(recipe, seed=leader.seed))
        spans = [
            replace(span, arm=f"{span.arm}/{each.macs_share:g}") if leader.sizes else span
            for each in facts
            for span in measure_steps(arms, dense, pair, each, device)
        ]
        for span in spans:
            folder.append("steps", span)


def _run_arm(
    recipe: Recipe, folder: ComparisonFolder, comparison: Comparison, encoder: Weights | None, device: str
) -> Generator[Comparing, None, None]:
    """Make the run that has just begun, and write it down."""
    record, begun = comparison.record, comparison.under_way
    assert begun is not None, "due has begun it"
    total = record.pairs_asked * len(record.design.arms)
    number = len(record.runs) + 1
    yield ArmBegun(arm=begun.arm, seed=begun.seed, number=number, total=total)
    leader = record.run_of(LEADERS[begun.arm], begun.pair) if begun.arm in LEADERS else None
    if leader is not None and leader.failure:
        failure = f"the {leader.arm}'s run left no {leader.arm}"
        run = replace(leader, arm=begun.arm, position=begun.position, windows=(), history=(), failure=failure)
    else:
        facts = () if leader is None else TicketFacts.all_of(leader, folder.path)
        steps = [span for span in record.steps if span.pair == begun.pair]
        run = yield from measure_run(
            begun, recipe, folder, tickets=facts, steps=steps, encoder=encoder, device=device
        )
    comparison.add_run(run)
    yield ArmEnded(
        run=run,
        number=number,
        total=total,
        seconds_left=estimate_seconds_left(comparison.record),
        quality=record.design.quality,
    )


def note_too_few(record: Record) -> Iterator[Note]:
    """Note that so few pairs bear no claim, where that is so."""
    if record.pairs_asked <= FEWEST_PAIRS:
        yield Note(f"no claim can come of {record.pairs_asked} pairs: {FEWEST_PAIRS + 1} are the fewest")


def warm_up(
    recipe: Recipe, folder: ComparisonFolder, record: Record, device: str
) -> Generator[Comparing, None, None]:
    """Make one short ticket and discard it: what a process does only once is charged to no arm."""
    yield ArmBegun(arm="warm-up", seed=recipe.seed, number=0, total=0)
    short = replace(
        recipe,
        train=replace(recipe.train, epochs=1),
        stop=Stop(draw=NoRule(), end=NoRule()),
        prune=replace(recipe.prune, rounds=1, repair=False),
        retrain=replace(recipe.retrain, rewind="none", epochs="rest"),
    )
    begun = Begun(arm="ticket", seed=recipe.seed, pair=0, position=0, folder="runs/warm-up")
    with beside(folder.runs / "warm-up") as temporary:
        aside = ComparisonFolder(temporary)
        aside.runs.mkdir(parents=True)
        run = yield from measure_run(begun, short, aside, device=device)
    thrown = BrokenOff(
        arm="warm-up",
        seed=recipe.seed,
        pair=None,
        position=len(record.runs) + len(record.broken_off),
        windows=run.windows,
        why="a short run to warm up, thrown away",
    )
    folder.append("broken-off", thrown)


def refuse_what_cannot_run(
    recipe: Recipe, arms: tuple[str, ...], encoder: Weights | None, device: str
) -> None:
    """Set up every arm whose recipe is fixed beforehand, so that faults show before the first run.

    Raises:
        RecipeError: an arm would be another one under another name, or its rules use what it does not read.
        TpspruneError: something an arm requests is not available, or nothing can be metered as requested.
    """
    if "ticket-without-tps" in arms and not _has_tps(recipe, device):
        message = "this recipe trains without TPS already: 'ticket' is the same"
        raise RecipeError(recipe.name, [Fault("arm 'ticket-without-tps'", message)])
    if recipe.energy.meter == "replay":
        message = "'replay' plays one run again; a comparison makes many, and needs a real meter"
        raise RecipeError(recipe.name, [Fault("energy.meter", message)])
    energy.build(recipe.energy, 0).shut()
    recipes = {arm: arm_recipe(arm, recipe) for arm in arms}
    faults = [
        Fault(f"arm '{arm}'", str(fault))
        for arm, adapted in recipes.items()
        for fault in rule_faults(adapted)
    ]
    if faults:
        raise RecipeError(recipe.name, faults)
    for arm, adapted in recipes.items():
        if arm not in LEADERS:
            try:
                with set_up(adapted, device) as bench:
                    if arm in TRANSFERRED and encoder is not None:
                        move_encoder(bench, encoder)
            except VariantError as error:
                raise VariantError(f"arm '{arm}': {error}") from error


def _has_tps(recipe: Recipe, device: str) -> bool:
    with set_up(recipe, device) as bench:
        return bench.new_regulariser(bench.new_model()) is not None


def lacks_inference(record: Record, pair: int) -> bool:
    """Return whether models of a pair have still to infer: those of arms that left one."""
    left = {run.arm for run in record.runs if run.pair == pair and not run.failure}
    metered = {(span.arm, span.batch) for span in record.inference if span.pair == pair}
    return any((arm, batch) not in metered for arm in left for batch in record.design.inference_batches)


def estimate_seconds_left(record: Record) -> float:
    """Return about how long the rest will take: runs at the mean time of their arm, and the windows due."""
    design = record.design

    def mean(arms: set[str]) -> float:
        times = [sum(window.seconds for window in run.windows) for run in record.runs if run.arm in arms]
        return sum(times) / len(times) if times else 0.0

    left = 0.0
    for pair in range(record.pairs_asked):
        due = list_due(record, pair)
        left += sum(mean({arm}) or mean(set(design.arms)) for arm, _ in due)
        if lacks_inference(record, pair) or due:
            left += design.inference_seconds * len(design.inference_batches) * len(design.arms)
        if due and all(span.pair != pair for span in record.idle):
            left += design.idle_seconds
    return left


def pilot_note(comparison: Comparison) -> str:
    """Return how many pairs savings of several sizes need, by the scatter so far."""
    needed = comparison.assess().needed
    if not needed:
        return "after three pairs the number needed cannot be estimated: nothing was metered"
    needed_pairs = ", ".join(
        f"{100 * each.saving_share:g} %: {'more than 1,000' if each.pairs is None else each.pairs}"
        for each in needed
    )
    return f"after three pairs: to see a saving of this size you need so many pairs ({needed_pairs})"
