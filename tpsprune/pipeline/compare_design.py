"""A comparison begun, or taken up again by the rules it was begun with."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Final

from tpsprune import energy, training
from tpsprune.errors import Fault, RecipeError, VariantError
from tpsprune.pipeline.arms import arm_recipe
from tpsprune.pipeline.bench import set_up
from tpsprune.pipeline.compare_run import made_in
from tpsprune.pipeline.weights import begins_with
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.compare import AFTER_TICKET
from tpsprune.recipe.schema import rule_faults
from tpsprune.records import BrokenOff, Comparison, Design, Window
from tpsprune.runs import ComparisonFolder
from tpsprune.runs.environment import machine_facts, versions
from tpsprune.runs.taking_up import ask_for_pairs, begin_or_match

__all__ = ["DEFAULT_PAIRS", "design_of", "opened", "refuse_what_cannot_run"]

DEFAULT_PAIRS: Final = 6
ALPHA: Final = 0.05
ORDER_SEED: Final = 0


def design_of(recipe: Recipe, arms: tuple[str, ...], pairs: int, device: str, command: str) -> Design:
    """Return what a comparison of this recipe fixes before its first run.

    The recipe's hash is that of its text, and of the weights where its model begins with given ones.
    """
    text, rules, given = dumps(recipe), recipe.compare, begins_with(recipe)
    return Design(
        name=recipe.name,
        arms=arms,
        first_seed=recipe.seed,
        order_seed=ORDER_SEED,
        tolerance_share=rules.tolerance,
        required_accuracy=recipe.task.required_accuracy,
        alpha=ALPHA,
        inference_seconds=rules.inference_seconds,
        inference_batches=rules.inference_batches if rules.inference_seconds else (),
        idle_seconds=rules.idle_seconds,
        foreign_load_share=rules.foreign_load,
        patience=rules.patience,
        recipe_text=text,
        recipe_sha256=hashlib.sha256((f"{text}\n{given}" if given else text).encode()).hexdigest(),
        device=training.choose_device(device).type,
        machine=machine_facts(),
        versions=versions(),
        begun=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        command=command,
        pairs=pairs,
    )


def refuse_what_cannot_run(recipe: Recipe, arms: tuple[str, ...], device: str) -> None:
    """Set every arm up once, as far as it is known beforehand, so that faults show before the first run.

    Raises:
        RecipeError: an arm would be another one under another name, needs a meter, or its rules look at what
            it does not read.
        TpspruneError: something an arm asks for cannot be had, or nothing can be metered as asked.
    """
    if "ticket-without-tps" in arms and not _has_tps(recipe, device):
        message = "this recipe trains without TPS already: 'ticket' is the same"
        raise RecipeError(recipe.name, [Fault("arm 'ticket-without-tps'", message)])
    if "shape-scratch-joules" in arms and recipe.energy.meter == "none":
        message = "counts joules, and energy.meter is 'none'"
        raise RecipeError(recipe.name, [Fault("arm 'shape-scratch-joules'", message)])
    if recipe.energy.meter == "replay":
        message = "'replay' plays one run again; a comparison makes many, and needs a meter of its own"
        raise RecipeError(recipe.name, [Fault("energy.meter", message)])
    energy.build(recipe.energy, 0).shut()
    mine = {arm: arm_recipe(arm, recipe) for arm in arms}
    faults = [
        Fault(f"arm '{arm}'", str(fault)) for arm, adapted in mine.items() for fault in rule_faults(adapted)
    ]
    if faults:
        raise RecipeError(recipe.name, faults)
    for arm, adapted in mine.items():
        if arm not in AFTER_TICKET:
            try:
                with set_up(adapted, device):
                    pass
            except VariantError as error:
                raise VariantError(f"arm '{arm}': {error}") from error


def _has_tps(recipe: Recipe, device: str) -> bool:
    with set_up(recipe, device) as bench:
        return bench.regulariser(bench.new_model()) is not None


def opened(folder: ComparisonFolder, design: Design, pairs: int | None) -> Comparison:
    """Begin the comparison, or read what was measured of it and end what was broken off.

    Raises:
        RunFolderError: the journal is of another recipe, other arms, rules, versions or machine: names the
            first difference. Or fewer pairs are asked for than were fixed.
    """
    comparison, begun = begin_or_match(folder, design, "--out")
    if begun is not None:
        broken = BrokenOff(
            arm=begun.arm,
            seed=begun.seed,
            pair=begun.pair,
            position=begun.position,
            windows=_windows(folder, begun.folder),
        )
        folder.append("broken-off", broken.to_json())
    ask_for_pairs(folder, comparison, pairs, f"--pairs {pairs}")
    return folder.read()[0]


def _windows(folder: ComparisonFolder, name: str) -> tuple[Window, ...]:
    """Return what a run that was broken off had journalled; nothing where it made no folder."""
    run = made_in(folder.path / name)
    return () if run is None else tuple(run.energy.parsed(Window.from_json))
