"""The folder of a family: its job, its look, and each size as soon as it is drawn; it is taken up again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, final

from torch import nn

from tpsprune import export as bundles
from tpsprune import pruning
from tpsprune.errors import ArtifactError, CannotWriteError
from tpsprune.pipeline.load import Weights, fill_ticket
from tpsprune.pipeline.save import write_bundle
from tpsprune.pruning import Extraction, Plan, WidthPlan
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.prune import Macs
from tpsprune.records import FamilyDrawn, FamilyJob, FamilyLook, FamilyResult, TaskFacts, dump, load
from tpsprune.report.family import family_page, write_family_picture
from tpsprune.runs import (
    Journal,
    cannot_write,
    exclusive,
    read_json,
    sweep,
    write_json_atomically,
    write_text_atomically,
)
from tpsprune.runs.tensors import load_tensors, save_tensors

FILE: Final = "family.json"
LOOK: Final = "look"


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A size that there is: its ticket, its plan, and what the user should know of it."""

    ticket: nn.Module
    plan: Plan
    notes: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class FamilyFolder:
    """Where a family lies: a bundle for each size, and last ``family.json``, page and picture.

    ``state/`` has what a further size needs, and a killed command: the job, the look, the journals of energy
    and of sizes drawn.
    """

    path: Path

    @property
    def state(self) -> Path:
        """The folder of what goes on from here."""
        return self.path / "state"

    @property
    def energy(self) -> Journal:
        """The journal of energy windows, of all commands that drew sizes."""
        return Journal(self.state / "energy.jsonl")

    @property
    def drawn(self) -> Journal:
        """The journal of sizes that are on disk."""
        return Journal(self.state / "drawn.jsonl")

    @property
    def look_file(self) -> Path:
        """The look at the dense model."""
        return self.state / "look.safetensors"

    def is_begun(self, job: FamilyJob) -> bool:
        """Return whether a family of this job lies here; else the place must be free.

        Raises:
            ArtifactError: something else lies here: a family of another job, or no family.
        """
        if not (self.state / "job.json").is_file():
            bundles.check_free(self.path)
            return False
        try:
            found = load(FamilyJob, read_json(self.state / "job.json"))
        except ValueError as error:
            raise ArtifactError(f"{self.state / 'job.json'} is damaged: {error}; move the folder") from error
        if found != job:
            other = _difference(found, job)
            raise ArtifactError(
                f"{self.path} holds a family of other {other}: give what it was made with to add a size, or "
                "another folder"
            )
        return True

    @contextmanager
    def writing(self, job: FamilyJob) -> Iterator[None]:
        """Hold the folder for this process; where a new one comes to nothing before its look, it goes."""
        is_new = not self.path.exists()
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with exclusive(self.state / "lock", "give another folder"):
            try:
                sweep(self.path)
                write_json_atomically(self.state / "job.json", dump(job))
                yield
            except CannotWriteError as error:
                raise CannotWriteError(
                    f"{error}, then give the command again: it goes on from there"
                ) from error
            finally:
                if not self.look_file.exists() and not self.drawn.path.exists():
                    shutil.rmtree(self.path if is_new else self.state, ignore_errors=True)

    def write_look(self, planned: WidthPlan) -> None:
        """Keep what was measured of the dense model."""
        facts, tensors = pruning.pack_look(planned)
        save_tensors(self.look_file, tensors, {LOOK: json.dumps(dump(facts))})

    def read_look(self, model: nn.Module, batch: Any, recipe: Recipe) -> WidthPlan | None:
        """Return what was measured of the dense model; nothing where nothing was.

        Raises:
            ArtifactError: it is damaged, or of another model.
        """
        if not self.look_file.exists():
            return None
        try:
            tensors, metadata = load_tensors(self.look_file)
            facts = load(FamilyLook, json.loads(metadata.get(LOOK, "null")))
            return pruning.restore_look(model, batch, recipe.prune, facts, tensors)
        except (ValueError, ArtifactError) as error:
            raise ArtifactError(
                f"{self.look_file} does not serve ({error}): remove it, and the model is looked at anew"
            ) from error

    def sizes(self) -> tuple[float, ...]:
        """Return the sizes on disk, the largest share first."""
        found = {each.size for each in self.drawn.parsed(FamilyDrawn) if self.folder_of(each.size).is_dir()}
        return tuple(sorted(found, reverse=True))

    def read_size(self, dense: nn.Module, size: float) -> Drawn:
        """Return a size on disk, proved whole.

        Raises:
            ArtifactError: it is not as it was written.
        """
        bundle = bundles.read_bundle(self.folder_of(size))
        ticket = fill_ticket(dense, bundle.plan, bundle.tensors)
        return Drawn(ticket, Plan.from_json(bundle.plan), self.notes_of(f"{size:g}"))

    def notes_of(self, name: str) -> tuple[str, ...]:
        """Return what the user should know of the size in a folder; nothing where no such size was drawn."""
        found = {f"{each.size:g}": each.notes for each in self.drawn.parsed(FamilyDrawn)}
        return found.get(name, ())

    def write_size(self, size: float, extraction: Extraction, recipe: Recipe, facts: TaskFacts) -> None:
        """Write a size that was drawn; from then on it is not drawn again."""
        if size not in self.sizes():  # A kill came between a folder and its line.
            shutil.rmtree(self.folder_of(size), ignore_errors=True)
        with bundles.new_folder(self.folder_of(size)) as place:
            write_bundle(place, extraction, dumps(recipe), facts)
        self.drawn.append(FamilyDrawn(size=size, notes=extraction.notes))

    def folder_of(self, size: float) -> Path:
        """Return the folder of a size."""
        return self.path / f"{size:g}"

    def read_result(self) -> FamilyResult | None:
        """Return the family as it was measured last; nothing where it never was to its end."""
        if not (self.path / FILE).exists():
            return None
        try:
            return load(FamilyResult, read_json(self.path / FILE))
        except ValueError as error:
            raise ArtifactError(f"{self.path / FILE} is damaged: {error}") from error

    def write_result(self, result: FamilyResult, *, calls_code: bool) -> None:
        """Write figures, picture and page; refused sizes go, what the others share is stored once."""
        for member in result.members:
            if member.refused:
                shutil.rmtree(self.folder_of(member.size), ignore_errors=True)
        write_family_picture(result, self.path)
        write_text_atomically(self.path / "README.md", family_page(result, calls_code=calls_code))
        write_json_atomically(self.path / FILE, dump(result))
        bundles.share_tensors(self.path, [self.folder_of(size) for size in self.sizes()])


def _difference(there: FamilyJob, here: FamilyJob) -> str:
    """Return the first thing in which two jobs differ, with both values."""
    if there.weights_sha256 != here.weights_sha256:
        return f"weights ({there.weights_sha256[:12]} there, {here.weights_sha256[:12]} here)"
    if there.by != here.by:
        return f"sizes (--by {there.by} there, {here.by} here)"
    lines = zip_longest(there.recipe.splitlines(), here.recipe.splitlines(), fillvalue="nothing")
    theirs, ours = next(pair for pair in lines if len(set(pair)) > 1)
    return f"recipe ({theirs} there, {ours} here)"


def job_of(recipe: Recipe, weights: Weights, by: str) -> FamilyJob:
    """Return what a family is of: recipe but for the target, weights, and what sizes are shares of."""
    same = replace(recipe, prune=replace(recipe.prune, target=Macs(0.5)))
    return FamilyJob(recipe=dumps(same), weights_sha256=weights.digest, by=by)


def widths_by_group(plan: Plan) -> dict[str, int]:
    """Return how many units each group of a plan keeps."""
    return {group.name: len(group.kept) for group in plan.groups}
