"""From an extraction to files: the ticket as a bundle that proves itself whole, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tpsprune import export as bundles
from tpsprune import pruning
from tpsprune.errors import ArtifactError, PruneError
from tpsprune.pruning import Extraction
from tpsprune.report.card import extraction_card

FORMAT: Final = "safetensors"


def save(extraction: Extraction, folder: str | Path) -> None:
    """Write what ``tpsprune.extract`` returned to a new folder; ``tpsprune.load`` with ``model=`` reads it.

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
        extraction: of ``tpsprune.extract``.
        folder: a place that is free, or an empty folder.

    Raises:
        ArtifactError: the folder is there already and not empty, or the ticket's tensors no longer have the
            names, shapes and number types that its plan gives.
        RunFolderError: it cannot be written.

    Cost: one pass over the tensors; of those on a GPU, or tied, a copy.
    """
    target = Path(folder)
    try:
        pruning.check_ticket(extraction.ticket, extraction.plan)
    except PruneError as error:
        raise ArtifactError(
            f"{error}; save it before its number type or its layers are changed, for what is read again is"
            " built by the plan"
        ) from error
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
    )
    with bundles.new_folder(target) as beside:
        bundles.write_description(beside, extraction.plan.to_json())
        formats = {FORMAT: bundles.write_ticket(beside, tensors)}
        bundles.write_card(beside, card)
        bundles.seal(
            beside,
            formats=formats,
            stamps=bundles.stamps_in(beside),
            tensors=tensors,
            facts=None,
            versions=extraction.plan.versions,
        )
