"""What is exported: the ticket of a run, that of a bundle, or of a family the size that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tpsprune import export as bundles
from tpsprune import recipe
from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.pipeline.family_folder import FamilyFolder
from tpsprune.pipeline.limits import pick_member
from tpsprune.pipeline.load import read_model, rebuild_bundle, rebuild_ticket
from tpsprune.recipe.task import Model
from tpsprune.recipe.within import Within
from tpsprune.records import GIVEN, FamilyMember, FamilyResult, GroupChange, TaskFacts, dump
from tpsprune.runs import RunFolder, read_fidelity, read_json, read_result, read_text


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A ticket and what its card may say; ``size`` of a family is what was picked.

    ``of_bundle``: no run made it, or none that is known.
    """

    ticket: nn.Module
    model: Model
    facts: TaskFacts
    plan: Mapping[str, Any]
    recipe_text: str
    facts_of_run: Mapping[str, Any]
    versions: Mapping[str, str]
    size: float | None = None
    of_bundle: bool = True


def read_source(folder: Path, pick: Sequence[Within], *, trust_code: bool, consent: str) -> Source:
    """Return what a folder holds to be exported.

    Args:
        folder: of a run, of a bundle with a recipe, or of a family.
        pick: limits that the size of a family must be within; the largest that is.
        trust_code: whether the code that its recipe names may run.
        consent: how that is allowed, as a message says it.

    Raises:
        RunFolderError: a run that is not finished.
        ArtifactError: a family without ``pick``, or ``pick`` without a family; no size is within; a bundle
            without a recipe; files do not make one model.
    """
    if not folder.exists():
        raise ArtifactError(f"{folder} is not there")
    family = FamilyFolder(folder).read_result()
    if family is None and FamilyFolder(folder).state.joinpath("job.json").is_file():
        raise ArtifactError(f"{folder} is a family that is not finished: give its command again")
    if family is None and pick:
        raise ArtifactError(f"{folder} is no family: there is one ticket, and nothing to --pick from")
    if family is not None:
        if not pick:
            sizes = ", ".join(each.folder for each in family.members if not each.refused)
            raise ArtifactError(
                f'{folder} is a family: say which of its sizes ({sizes}), as in --pick "latency<=5ms", or '
                f"export the folder of one, as in {folder}/{family.members[-1].folder}"
            )
        member = pick_member(family, pick)
        source = _of_bundle(folder / member.folder, trust_code=trust_code, consent=consent)
        facts = {**source.facts_of_run, **_facts_of(family, member)}
        return replace(source, facts_of_run=facts, size=member.size)
    if bundles.is_bundle(folder):
        return _of_bundle(folder, trust_code=trust_code, consent=consent)
    return _of_run(folder, trust_code=trust_code, consent=consent)


def _of_run(folder: Path, *, trust_code: bool, consent: str) -> Source:
    run = RunFolder.open_existing(folder)
    if not run.is_finished:
        raise RunFolderError(
            f"{folder} is not finished: go on with 'tpsprune train … --resume', then export it"
        )
    result, text = read_result(run.result), read_text(run.recipe)
    model = read_model(folder, text, trust_code=trust_code, consent=consent)
    ticket = rebuild_ticket(run, model, result.task)
    facts = dump(result)
    if run.fidelity.is_file():
        facts["fidelity"] = dump(read_fidelity(run.fidelity))
    return Source(
        ticket, model, result.task, read_json(run.plan), text, facts, result.versions, of_bundle=False
    )


def _of_bundle(folder: Path, *, trust_code: bool, consent: str) -> Source:
    bundle = bundles.read_bundle(folder)
    if bundle.facts is None:
        raise ArtifactError(
            f"{folder} was saved without a recipe, so it does not say what its model is built by: "
            "tpsprune.load(folder, model=net) reads it in Python"
        )
    model = read_model(folder, bundle.recipe_text, trust_code=trust_code, consent=consent)
    ticket = rebuild_bundle(folder, bundle, model)
    read = recipe.parse(bundle.recipe_text, str(folder))
    groups = [
        GroupChange(group=each["name"], width_before=each["width"], width_after=len(each["kept"]))
        for each in bundle.plan["groups"]
    ]
    facts = {
        "name": read.name,
        "seed": read.seed,
        "task": dump(bundle.facts),
        "groups": [dump(each) for each in groups],
        "notes": FamilyFolder(folder.parent).notes_of(folder.name),
        "versions": bundle.versions,
    }
    return Source(ticket, model, bundle.facts, bundle.plan, bundle.recipe_text, facts, bundle.versions)


def _facts_of(family: FamilyResult, member: FamilyMember) -> dict[str, Any]:
    """Return what a family knows of one size, under the names that a run has for it."""
    raw = dump(family)
    mine, theirs = member.figures, family.dense.figures
    joules = "the energy is that of the whole family: of drawing, repairing and measuring all of its sizes"
    return {
        **{name: raw[name] for name in ("device", "machine", "energy", "method", "total", "versions")},
        "dense": dump(theirs),
        "ticket": dump(mine),
        "macs_share": mine.macs / theirs.macs,
        "parameters_share": mine.parameters / theirs.parameters,
        "pruned_validation_accuracy": member.validation_accuracy,
        "drawn_at": {"rule": GIVEN, "reason": family.weights},
        "notes": [*member.notes, joules],
    }
