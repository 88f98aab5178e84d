"""The panel of a ticket's fidelity, for a terminal of 80 columns."""

from __future__ import annotations

from typing import Final

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from tpsprune.records import Fidelity, LatentField
from tpsprune.report import words
from tpsprune.report.tables import RIGHT, make_table

EACH: Final = {
    "quality": "right",
    "calibration_error": "calibration error",
    "nc1": "collapse: NC1, within classes",
    "nc2_norms": "  NC2, lengths of means",
    "nc2_angles": "  NC2, angles of means",
    "nc3": "  NC3, weight to means",
    "nc4": "  NC4, not the nearest mean",
    "foreign_roc_area": "foreign inputs told apart",
}
BOTH: Final = {
    "agreement": "same class",
    "divergence_nats": "KL(dense ‖ ticket), nats",
    "outputs_explained": "outputs explained, R²",
    "states_explained": "last states explained by an affine map, R²",
    "barrier_loss": "barrier of loss between the weights",
    "barrier_error": "barrier of error",
}
FIELD: Final = {"latent_field": "latent field", "same_basin": "share in the same basin"}


def fidelity_table(found: Fidelity) -> RenderableType:
    """Return the panel: what is read of each model, what of both, and why something is not there."""
    each = make_table({f"{found.items:,} items, {found.split}": {}, "dense": RIGHT, "ticket": RIGHT})
    for name, title in EACH.items():
        cells = [_number(getattr(model, name)) for model in (found.dense, found.ticket)]
        if any(cells):
            each.add_row(title, *cells)
    both = make_table({"between the two": {}, "": RIGHT})
    for name, title in BOTH.items():
        if cell := _number(getattr(found, name)):
            both.add_row(title, cell)
    absent: dict[str, list[str]] = {}
    for name, reason in found.absent.items():
        absent.setdefault(reason, []).append((EACH | BOTH | FIELD)[name].split(",")[0].strip().split(":")[0])
    lines = [Text(f"Not read: {', '.join(dict.fromkeys(names))}: {why}.") for why, names in absent.items()]
    if found.foreign:
        lines.insert(0, Text(f"Foreign inputs: {found.foreign}; ROC area of the largest score."))
    lines.append(Text(f"Read in {words.seconds(found.cpu_seconds)} of processor time."))
    field = [] if found.latent_field is None else [_field_table(found.latent_field), Text("")]
    return Lines(each, Text(""), both, Text(""), *field, *lines)


def _field_table(field: LatentField) -> RenderableType:
    """Return the field of an autoencoder: radii first, then drift and basins beside those of the null."""
    table = make_table(
        {f"latent field, {field.items:,} items": {}, "dense": RIGHT, "ticket": RIGHT, "shaken": RIGHT}
    )
    table.add_row("spectral radius", _number(field.dense_radius), _number(field.ticket_radius), "")
    for times, drift in field.drift.items():
        name = f"drift over spread, {times} iteration{'s' if times != '1' else ''}"
        table.add_row(name, "", _number(drift), _number(field.shaken_drift[times]))
    if field.same_basin is not None:
        shaken = _number(field.shaken_same_basin)
        table.add_row(f"same basin, of {field.attractors}", "", _number(field.same_basin), shaken)
    error = _number(field.output_error)
    return Lines(
        table, Text(f"Shaken: the dense weights, at random, until outputs err as the ticket's, by {error}.")
    )


def _number(value: float | None) -> str:
    """Return four digits behind the point, three significant ones where that would be nothing."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2g}"
