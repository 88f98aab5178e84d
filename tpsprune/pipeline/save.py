"""From an extraction to files: the ticket as a bundle that proves itself whole, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tpsprune import export as bundles
from tpsprune import pruning
from tpsprune.errors import ArtifactError, PruneError
from tpsprune.loop.family import Family
from tpsprune.pruning import Extraction
from tpsprune.records import TaskFacts
from tpsprune.report.card import extraction_card

FORMAT: Final = "safetensors"


def save(extraction: Extraction | Family, folder: str | Path) -> None:
    """Write what ``tpsprune.extract`` returned to a new folder; ``tpsprune.load`` with ``model=`` reads it.

    Of a family all sizes are drawn, and there is a folder for each in the new one (``load`` with ``size=``);
    tensors that several have alike are stored once.

    The folder is the bundle of ``tpsprune export`` but for the recipe: the ticket's tensors as safetensors,
    its plan, a model card, and a manifest with the hash of each, sealed. The ticket's weights are written as
    they are now: it may have been trained further. The model's code is not written, and nothing is pickled.
    The folder appears whole or not at all, and the same extraction gives the same bytes.

    >>> import tempfile, torch, tpsprune
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> found = tpsprune.extract(net, torch.randn(512, 8))
    >>> with tempfile.TemporaryDirectory() as place:
    ...     tpsprune.save(found, f"{place}/ticket")
    ...     again = tpsprune.load(f"{place}/ticket", model=net)
    >>> torch.equal(again[0].weight, found.ticket[0].weight)
    True

    Args:
        extraction: of ``tpsprune.extract``, or a family.
        folder: a place that is free, or an empty folder.

    Raises:
        ArtifactError: the folder is there already and not empty, or the ticket's tensors no longer have the
            names, shapes and number types that its plan gives.
        RunFolderError: it cannot be written.

    Cost: one pass over the tensors; of those on a GPU, or tied, a copy.
    """
    target = Path(folder)
    if isinstance(extraction, Family):
        bundles.check_free(target)
        names = [f"{size:g}" for size in extraction.sizes]
        if len({*names}) < len(names):
            raise ArtifactError(f"sizes {', '.join(map(repr, extraction.sizes))}: two are one to six digits")
        for each in extraction:
            _check(each)
        with bundles.new_folder(target) as beside:
            for size in extraction.sizes:
                (beside / f"{size:g}").mkdir()
                write_bundle(beside / f"{size:g}", extraction[size])
            bundles.share_tensors(beside, [beside / f"{size:g}" for size in extraction.sizes])
        return
    _check(extraction)
    with bundles.new_folder(target) as beside:
        write_bundle(beside, extraction)


def _check(extraction: Extraction) -> None:
    try:
        pruning.check_ticket(extraction.ticket, extraction.plan)
    except PruneError as error:
        raise ArtifactError(
            f"{error}; save it before its number type or its layers are changed, for what is read again is"
            " built by the plan"
        ) from error


def write_bundle(
    folder: Path, extraction: Extraction, recipe_text: str = "", facts: TaskFacts | None = None
) -> None:
    """Write a ticket into a folder and seal it; with a recipe and its task's facts no model is needed."""
    tensors = extraction.ticket.state_dict()
    card = extraction_card(
        architecture=type(extraction.ticket).__name__,
        target=extraction.plan.target,
        macs_share=extraction.macs_share,
        parameters=sum(parameter.numel() for parameter in extraction.ticket.parameters()),
        changes=extraction.changes,
        unpruned=extraction.unpruned,
        notes=extraction.notes,
        versions=extraction.plan.versions,
        recipe_text=recipe_text,
    )
    bundles.write_description(folder, extraction.plan.to_json(), recipe_text)
    formats = {FORMAT: bundles.write_ticket(folder, tensors)}
    bundles.write_card(folder, card)
    bundles.seal(
        folder,
        formats=formats,
        stamps=bundles.stamps_in(folder),
        tensors=tensors,
        facts=facts,
        versions=extraction.plan.versions,
    )
