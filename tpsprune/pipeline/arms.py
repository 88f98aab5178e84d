"""The arms of a comparison: what each runs, from one recipe, one seed, and what the ticket found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Final

from tpsprune.errors import PruneError, RunFolderError
from tpsprune.pipeline.train import train
from tpsprune.pipeline.weights import without_weights
from tpsprune.pipeline.whole import whole
from tpsprune.pruning import Plan
from tpsprune.recipe import Recipe
from tpsprune.recipe.prune import Widths
from tpsprune.recipe.stop import MaskRule, NoRule, PatienceRule, Rule
from tpsprune.recipe.train import Tps
from tpsprune.records import ArmRun, Event, Outcome
from tpsprune.runs import RunFolder, read_json, read_result

__all__ = ["Found", "arm_recipe", "run_arm"]

NEW_WEIGHTS: Final = 1_000_000
"""Added to the seed where a shape gets new weights: those of the ticket's own init are another claim."""
ASIDE: Final = ("setup", "weigh")
BN_L1: Final = 1e-4
"""Weight of the L1 norm of batch-norm scales, as published (You et al. 2020, section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the ticket's run of a pair has found and left: for arms that are handed it."""

    plan: Plan
    widths: dict[str, int]
    epochs: float
    epoch_joules: float | None
    """Of one epoch of training after the cut, or before it where there was none after."""
    aside_joules: float
    """Of setting up and weighing."""
    joules: float | None

    @classmethod
    def of(cls, run: ArmRun, folder: RunFolder) -> Found:
        """Read it from the run's folder.

        Raises:
            RunFolderError: the folder is gone, or something in it is.
        """
        if not folder.path.is_dir():
            raise RunFolderError(
                f"{folder.path} is gone, and arms of pair {run.pair + 1} need the ticket in it: put it back, "
                "or begin anew with another --out"
            )
        outcome = Outcome.from_json(read_result(folder.result))
        per_phase = {phase.phase: phase for phase in outcome.energy}
        retrained = outcome.stopped.epoch - outcome.drawn.epoch
        phase = per_phase.get("retrain") if retrained > 0 else per_phase.get("train")
        epochs = retrained if retrained > 0 else outcome.drawn.epoch
        return cls(
            plan=Plan.from_json(read_json(folder.plan)),
            widths={group.group: group.width_after for group in outcome.groups},
            epochs=outcome.stopped.epoch,
            epoch_joules=None if phase is None or phase.joules is None else phase.joules / epochs,
            aside_joules=sum(per_phase[name].joules or 0.0 for name in ASIDE if name in per_phase),
            joules=outcome.total.joules,
        )


def run_arm(
    arm: str, recipe: Recipe, out: Path, *, found: Found | None = None, device: str = "auto"
) -> Iterator[Event]:
    """Run one arm of the recipe, whose seed is the pair's; yield what happens, last what came out."""
    mine = arm_recipe(arm, recipe, found)
    rules: dict[str, Rule | None] = {
        "dense": NoRule(),
        "dense-stopped": None,
        "dense-patience": PatienceRule(patience=recipe.compare.patience),
        "shape-scratch": NoRule(),
        "shape-scratch-joules": NoRule(),
    }
    if arm not in rules:
        return train(mine, out, device=device, again=True, timed=False)
    plan = found.plan if found is not None and arm.startswith("shape-scratch") else None
    return whole(mine, out, arm=arm, rule=rules[arm], plan=plan, device=device)


def arm_recipe(arm: str, recipe: Recipe, found: Found | None = None) -> Recipe:
    """Return the recipe that an arm runs; without ``found``, as far as it is known beforehand."""
    plain = replace(
        recipe,
        tps=Tps(variant="none"),
        watch=replace(recipe.watch, signals=()),
        stop=replace(recipe.stop, draw=NoRule(), end=NoRule()),
        retrain=replace(recipe.retrain, rewind="none"),
    )
    match arm:
        case "dense":
            return _read_once(plain)
        case "dense-patience":
            return plain
        case "dense-stopped":
            return replace(recipe, retrain=replace(recipe.retrain, rewind="none"))
        case "ticket-without-tps":
            return replace(recipe, tps=Tps(variant="none"))
        case "shape-scratch":
            epochs = recipe.train.epochs if found is None else ceil(found.epochs)
            return _afresh(plain, epochs)
        case "shape-scratch-joules":
            return _as_dear(plain, found)
        case "random-ticket":
            target = recipe.prune.target if found is None else Widths(found.widths)
            prune = replace(recipe.prune, target=target, units="random", rounds=1)
            return replace(recipe, prune=prune)
        case "early-bird":
            return _early_bird(recipe)
        case _:
            return recipe


def _read_once(recipe: Recipe) -> Recipe:
    """Return the recipe read at its end alone: where no reading can change anything, none is paid for."""
    return replace(recipe, watch=replace(recipe.watch, every_epochs=recipe.train.epochs, every_steps=None))


def _afresh(recipe: Recipe, epochs: int) -> Recipe:
    train = replace(recipe.train, epochs=max(epochs, 1))
    fresh = without_weights(recipe)
    return _read_once(replace(fresh, seed=recipe.seed + NEW_WEIGHTS, train=train))


def _as_dear(recipe: Recipe, found: Found | None) -> Recipe:
    """Return the recipe that spends what the ticket's run spent: a schedule of about that length, and a stop.

    Its length is what the ticket's total, setting up and weighing left out, would buy at the joules of one of
    its own epochs after the cut; a budget ends it at the total itself, within two seconds.

    Raises:
        PruneError: nobody knows what the ticket's run took.
    """
    if found is None:
        return _afresh(recipe, recipe.train.epochs)
    if found.joules is None or not found.epoch_joules:
        raise PruneError("the joules of the ticket's run are not known, so none can be as many")
    fresh = _afresh(recipe, round((found.joules - found.aside_joules) / found.epoch_joules))
    return replace(fresh, stop=replace(fresh.stop, budget_joules=found.joules))


def _early_bird(recipe: Recipe) -> Recipe:
    """Return a draw and a cut after Early-Bird: a mask an epoch, drawn below 0.1, no look at what is learned.

    Cut by the batch-norm scales to the recipe's target, its weights inherited, nothing folded; the rest of
    the schedule is the recipe's, and its end too: an end by patience is as long in epochs. Two things differ
    from the published code: masks keep half of the units whatever the target, and the scales of a group are
    ranked over their mean.

    Source: You et al. 2020, "Drawing Early-Bird Tickets" (arXiv 1909.11957).
    """
    end, cadence = recipe.stop.end, recipe.watch.every_epochs or 1
    if isinstance(end, PatienceRule) and recipe.watch.every_steps is None:
        end = replace(end, patience=end.patience * cadence)
    return replace(
        recipe,
        tps=Tps(variant="bn-l1", coupling=BN_L1, warmup_share=0.0),
        watch=replace(recipe.watch, signals=("mask_distance",), every_epochs=1, every_steps=None),
        stop=replace(recipe.stop, draw=MaskRule(learned_share=0.0), end=end),
        prune=replace(
            recipe.prune,
            widths="global-magnitude",
            units="bn-scale",
            fold=False,
            refit=False,
            recalibrate=False,
            heal_steps=0,
            rounds=1,
        ),
        retrain=replace(recipe.retrain, rewind="none"),
    )
