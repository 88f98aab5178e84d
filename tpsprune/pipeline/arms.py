"""The arms of a comparison: what each runs, from one recipe, one seed, and what the ticket found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Final

from tpsprune.errors import RunFolderError
from tpsprune.pipeline.train import train
from tpsprune.pipeline.whole import whole
from tpsprune.pruning import Plan
from tpsprune.recipe import Recipe
from tpsprune.recipe.stop import MaskRule, NoRule, PatienceRule, Rule
from tpsprune.recipe.target import Widths
from tpsprune.recipe.tps import Tps
from tpsprune.records import ArmRun, Event, Outcome
from tpsprune.runs import RunFolder, read_json, read_result

__all__ = ["Found", "arm_recipe", "run_arm"]

NEW_WEIGHTS: Final = 1_000_000
"""Added to the seed where a shape gets new weights: those of the ticket's own init are another claim."""
BN_L1: Final = 1e-4
"""Weight of the L1 norm of batch-norm scales, as published (You et al. 2020, section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the ticket's run of a pair has found and left: for arms that are handed it."""

    plan: Plan
    widths: dict[str, int]
    epochs: float
    retrain_joules_per_epoch: float | None
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
            retrain_joules_per_epoch=None if phase is None or phase.joules is None else phase.joules / epochs,
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
        case "dense" | "dense-patience":
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


def _afresh(recipe: Recipe, epochs: int) -> Recipe:
    return replace(recipe, seed=recipe.seed + NEW_WEIGHTS, train=replace(recipe.train, epochs=max(epochs, 1)))


def _as_dear(recipe: Recipe, found: Found | None) -> Recipe:
    """Return the recipe that spends what the ticket's run spent: a schedule of about that length, and a stop.

    Its length is what the ticket's total would buy at the joules of one of its own epochs after the cut; a
    budget ends it at the total itself, within two seconds.
    """
    if found is None or found.joules is None or not found.retrain_joules_per_epoch:
        return _afresh(recipe, recipe.train.epochs)
    fresh = _afresh(recipe, ceil(found.joules / found.retrain_joules_per_epoch))
    return replace(fresh, stop=replace(fresh.stop, budget_joules=found.joules))


def _early_bird(recipe: Recipe) -> Recipe:
    """Return Early-Bird as published: one mask an epoch, drawn below 0.1, no look at what is learned.

    Cut by the batch-norm scales under one threshold to the recipe's target, its weights inherited, nothing
    folded; the rest of the schedule and its end are the recipe's.
    """
    return replace(
        recipe,
        tps=Tps(variant="bn-l1", coupling=BN_L1, warmup_share=0.0),
        watch=replace(recipe.watch, signals=("mask_distance",), every_epochs=1, every_steps=None),
        stop=replace(recipe.stop, draw=MaskRule(learned_share=0.0)),
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
