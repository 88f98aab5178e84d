"""The page and the picture of a family: quality over what each size takes, beside the dense model."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.figure import Figure

from tpsprune.records import FamilyMember, FamilyResult
from tpsprune.report import words
from tpsprune.report.card import hub_task_of, metric_of
from tpsprune.report.forms import load_templates
from tpsprune.report.tables import FAMILY_HEAD, member_cells
from tpsprune.runs import write_bytes_atomically

PICTURE: Final = "family.png"
OURS, RIVAL, GREY = "#0072B2", "#D55E00", "#888888"


def family_page(family: FamilyResult, *, calls_code: bool = False) -> str:
    """Return the page as Markdown: a row for each size, the dense model first.

    ``calls_code``: whether loading a size calls code that the recipe names.
    """
    environment = load_templates("md", {"share": words.share}, {})
    text = environment.get_template("family.md.j2").render(
        family=family,
        head=FAMILY_HEAD,
        rows=[member_cells(family, each) for each in (family.dense, *family.members)],
        picture=PICTURE,
        calls_code=calls_code,
        quality=family.task.quality,
        metric=metric_of(family.task.quality),
        hub_task=hub_task_of(family.task.input_kind, family.task.loss),
        classes=", ".join(f"{part} {kind}" for part, kind in family.method.classes.items()),
        total=words.joules(family.total.joules),
        folders=[each.folder for each in family.members if not each.refused],
    )
    return text.rstrip("\n") + "\n"


def write_family_picture(family: FamilyResult, folder: Path) -> None:
    """Draw quality over operations, latency and energy of an answer, and write it into a folder."""
    buffer = BytesIO()
    with rc_context({"font.size": 9, "svg.hashsalt": "tpsprune"}):
        _figure(family).savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    write_bytes_atomically(folder / PICTURE, buffer.getvalue())


def _figure(family: FamilyResult) -> Figure:
    members = [family.dense, *family.members]
    batch = list(family.dense.figures.latency_seconds)[-1]
    axes_of: list[tuple[str, list[float | None]]] = [
        ("multiply-accumulates, share", [each.figures.macs / family.dense.figures.macs for each in members]),
        (
            f"latency, {batch.replace('-', ' ')} (ms)",
            [1e3 * each.figures.latency_seconds[batch].median_seconds for each in members],
        ),
        (
            f"energy of an answer, batch {family.inference_batch} (mJ)",
            [None if each.joules_per_answer is None else 1e3 * each.joules_per_answer for each in members],
        ),
    ]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, (label, places) in zip(figure.subplots(1, len(axes_of), sharey=True), axes_of, strict=True):
        _draw(axes, family, members, places)
        axes.set_xlabel(label)
    figure.axes[0].set_ylabel(f"test {family.task.quality}")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    title = f"{family.name}: one training, {len(family.members)} sizes"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def _draw(axes: Any, family: FamilyResult, members: list[FamilyMember], places: list[float | None]) -> None:
    seen = [(x, each) for x, each in zip(places, members, strict=True) if x is not None]
    for rank, (x, each) in enumerate(sorted(seen, key=lambda point: point[0])):
        hollow = bool(each.refused) or (each is not family.dense and family.dominated(each))
        axes.plot(x, each.figures.accuracy, "o", color=OURS, mfc="white" if hollow else OURS)
        name = "dense" if each is family.dense else f"{each.size:g}"
        # Neighbours' names one above the other, for they may be as fast as each other.
        place = (0, 6 + 9 * (rank % 3))
        axes.annotate(
            name,
            (x, each.figures.accuracy),
            textcoords="offset points",
            xytext=place,
            fontsize=7,
            ha="center",
        )
    axes.plot([], [], "o", color=OURS, label="the family")
    axes.plot([], [], "o", color=OURS, mfc="white", label="dominated or refused")
    rivals = [(x, each.rival_accuracy) for x, each in seen if each.rival_accuracy is not None]
    if rivals:
        label = "torch-pruning's magnitude, same operations"
        axes.plot([x for x, _ in rivals], [y for _, y in rivals], "s", color=RIVAL, label=label)
    axes.axhline(family.dense.figures.accuracy, color=GREY, linewidth=0.8, linestyle=":")
    axes.margins(y=0.15)
    axes.set_xlim(0, 1.1 * max((x for x, _ in seen), default=1.0))
    axes.spines[["top", "right"]].set_visible(False)
