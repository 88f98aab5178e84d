"""The ticket leaves its run: written in the formats requested, reloaded, compared, or not at all."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, final

import torch
from torch import Tensor, nn

from tpsprune import export as bundles
from tpsprune.errors import ArtifactError, did_you_mean
from tpsprune.numerics.trees import random_inputs
from tpsprune.pipeline.export_source import read_source
from tpsprune.pipeline.load import load
from tpsprune.recipe.task import CustomModel
from tpsprune.recipe.within import Within
from tpsprune.records import Compared, Exported, Exporting, Grid, TaskFacts
from tpsprune.report.card import model_card
from tpsprune.runs.tensors import Expected, shapes_of

BATCHES: Final = (1, 2, 7, 16)
"""How many items the compared batches have: the batch is left open, and each of them must pass."""
EXAMPLE_ITEMS: Final = 2
CONSENT: Final = "export it with --trust-code (in Python trust_code=True)"
MOST_CHARACTERS: Final = 300


class Format(Protocol):
    """One way to write a ticket, and to get it back from its files alone."""

    name: ClassVar[str]
    tolerance_share: ClassVar[float]

    def refuse(self, model: nn.Module) -> None:
        """Raise ArtifactError where it is not possible: before anything is written."""

    def write(self, folder: Path, model: nn.Module, example: Any) -> tuple[str, ...]:
        """Write the files, and return their names."""

    def reload(self, folder: Path) -> bundles.Predictor:
        """Return what infers from the files."""


@final
class Safetensors:
    """The bundle that ``tpsprune.load`` reads: the same model, the same numbers, equal to the bit."""

    name: ClassVar[str] = "safetensors"
    tolerance_share: ClassVar[float] = 0.0

    def refuse(self, model: nn.Module) -> None:
        """Refuse nothing."""

    def write(self, folder: Path, model: nn.Module, example: Any) -> tuple[str, ...]:  # noqa: ARG002
        """Write the tensors."""
        return bundles.write_ticket(folder, model.state_dict())

    def reload(self, folder: Path) -> bundles.Predictor:
        """Load the finished bundle; the recipe is this run's own, to whose code the caller consented."""
        return bundles.predictor_of(load(folder, trust_code=True))


_ALL: Final[tuple[Format, ...]] = (
    Safetensors(),
    bundles.TorchExport(),
    bundles.Onnx(),
    bundles.HuggingFace(),
)
FORMATS: Final = tuple(each.name for each in _ALL)


def export(
    folder: Path,
    target: Path,
    formats: Sequence[str] = ("safetensors",),
    *,
    pick: Sequence[Within] = (),
    grid: Grid | None = None,
    trust_code: bool = False,
) -> Exported:
    """Write a ticket to a new folder; see ``export_steps``."""
    *_, exported = export_steps(folder, target, formats, pick=pick, grid=grid, trust_code=trust_code)
    assert isinstance(exported, Exported)
    return exported


def export_steps(
    folder: Path,
    target: Path,
    formats: Sequence[str] = ("safetensors",),
    *,
    pick: Sequence[Within] = (),
    grid: Grid | None = None,
    trust_code: bool = False,
) -> Iterator[Exporting | Exported]:
    """Write a ticket to a new folder; yield each step as it begins, last the export.

    The files are written to a temporary folder beside the target. Every format is written, reloaded from its
    files and run on random inputs at several batch sizes; what differs from the ticket by more than the
    format allows is refused.
    Only then is the folder renamed to the target: it appears whole or not at all. The same run gives the same
    bytes, with the same versions of the libraries.

    Args:
        folder: of ``train`` or ``prune``, finished; of a family; or a bundle with a recipe.
        target: a folder that is not there, or empty.
        formats: among ``FORMATS``; with each come plan, recipe and model card.
        pick: of a family the largest size that is within these limits.
        grid: turns the run's joules into grams of CO₂ on the model card; without it there are none.
        trust_code: where the run's model is ``custom``, its recipe names a callable, which rebuilding the
            ticket **imports and calls**: allow it for a run of your own, or one whose recipe.toml you read.

    Raises:
        RunFolderError: the run is not finished, or the target cannot be written.
        ArtifactError: the target is taken, no size of a family is within the limits, a format does not exist
            or is not possible here, the model is ``custom`` and ``trust_code`` is not set, or the reloaded
            ticket computes other numbers.

    Cost: the ticket's size in memory once, for each format what its library takes, and a few passes.
    """
    chosen = _choose_formats(formats)
    bundles.check_free(target)
    source = read_source(folder, pick, trust_code=trust_code, consent=CONSENT)
    facts, recipe_text = source.facts, source.recipe_text
    ours: nn.Module | None = source.ticket
    source = replace(source, ticket=nn.Identity())
    assert ours is not None
    for each in chosen:
        each.refuse(ours)
    expected = shapes_of(ours.state_dict()) if "safetensors" in formats else {}
    architecture = type(ours).__name__
    with bundles.new_folder(target) as place:
        yield Exporting(chosen[0].name, "running the ticket")
        batches = {items: random_inputs(facts, items, seed=items) for items in BATCHES}
        outputs = dict(_infer("the ticket", bundles.predictor_of(ours), batches))
        bundles.write_description(place, source.plan, recipe_text)
        written: dict[str, tuple[str, ...]] = {}
        for each in chosen:
            yield Exporting(each.name, "writing")
            written[each.name] = each.write(place, ours, random_inputs(facts, EXAMPLE_ITEMS, seed=0))
        # From here on the files stand for the ticket, and there is one copy of it less in memory.
        ours = None
        gc.collect()
        card = model_card(
            source.facts_of_run,
            recipe_text=recipe_text,
            recipe_sha256=hashlib.sha256(recipe_text.encode()).hexdigest(),
            architecture=architecture,
            formats=written,
            stamps=bundles.stamps_in(place),
            checked={each.name: each.tolerance_share for each in chosen},
            batches=BATCHES,
            auto_class=bundles.auto_class(place),
            grid=grid,
            of_bundle=source.of_bundle,
        )
        bundles.write_card(place, card)
        _seal(place, written, expected, facts, source.versions)
        compared = []
        for each in chosen:
            yield Exporting(each.name, "reloading and comparing")
            compared.append(_compare(each, place, written[each.name], batches, outputs))
        stamps = bundles.stamps_in(place)
    calls = source.model.factory if isinstance(source.model, CustomModel) else ""
    yield Exported(folder=str(target), stamps=stamps, compared=tuple(compared), calls=calls, size=source.size)


def _choose_formats(formats: Sequence[str]) -> list[Format]:
    by_name = {each.name: each for each in _ALL}
    for name in formats:
        if name not in by_name:
            raise ArtifactError(
                f"no format '{name}'{did_you_mean(name, FORMATS)} (formats: {', '.join(FORMATS)})"
            )
    if not formats:
        raise ArtifactError(f"no format was requested (formats: {', '.join(FORMATS)})")
    return [by_name[name] for name in dict.fromkeys(formats)]


def _seal(
    folder: Path,
    written: dict[str, tuple[str, ...]],
    tensors: Expected,
    facts: TaskFacts,
    versions: Mapping[str, str],
) -> None:
    stamps = bundles.stamps_in(folder)
    bundles.seal(folder, formats=written, stamps=stamps, tensors=tensors, facts=facts, versions=versions)


def _compare(
    kind: Format,
    folder: Path,
    files: tuple[str, ...],
    batches: dict[int, Any],
    outputs: dict[int, Tensor],
) -> Compared:
    """Hold a reloaded ticket against the run's own at every batch size; each has to pass.

    Raises:
        ArtifactError: one does not, or the format's library fails on it.
    """
    worst: Compared | None = None
    for items, found in _infer(f"{kind.name}: the reloaded ticket", kind.reload(folder), batches):
        compared = Compared(
            format=kind.name,
            files=files,
            batches=tuple(batches),
            largest_difference=_difference(found, outputs[items]),
            largest_score=outputs[items].abs().max().item(),
            tolerance_share=kind.tolerance_share,
        )
        if not compared.is_equal:
            raise ArtifactError(
                f"{kind.name}: on {items} random inputs the reloaded ticket differs from the run's by "
                f"{compared.largest_difference:g}, where {compared.allowed:g} passes; nothing was written"
            )
        if worst is None or compared.largest_difference > worst.largest_difference:
            worst = compared
    assert worst is not None
    return worst


def _infer(subject: str, predict: bundles.Predictor, batches: dict[int, Any]) -> Iterator[tuple[int, Tensor]]:
    for items, batch in batches.items():
        try:
            yield items, predict(batch)
        except Exception as error:  # a model's own code runs here, or a library's, and may raise anything
            message = " ".join(str(error).split())[:MOST_CHARACTERS] or type(error).__name__
            raise ArtifactError(
                f"{subject} fails on {items} random inputs (floats are standard normal, whole numbers from "
                f"the data's lowest to their highest): {message}"
            ) from error


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return (found.to(torch.float64) - wanted.to(torch.float64)).abs().max().item()
