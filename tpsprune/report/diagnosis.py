"""What ``doctor`` found, for people: the machine, what is measured of it, and what would measure more."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tpsprune.records import Diagnosis, MachineFacts, MeteredPart, Remedy, SoftwareFacts
from tpsprune.report import words

__all__ = ["diagnosis"]

UNKNOWN = "unknown"


def diagnosis(found: Diagnosis) -> RenderableType:
    """Return the whole of it; lines to copy stand as they are, never broken."""
    grade = f"Grade {found.grade or UNKNOWN}"
    parts: list[RenderableType] = [_parts(found.parts), Text("")] if found.parts else []
    return Lines(
        _facts(found.machine, found.software),
        Text(""),
        *parts,
        Text.assemble((grade, "bold"), f": {found.grade_meaning}"),
        *_remedies(found.remedies),
    )


def _facts(machine: MachineFacts, software: SoftwareFacts) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in (
        ("cpu", f"{machine.cpu_model or UNKNOWN}, {_or_unknown(machine.logical_cpus)} logical CPUs"),
        ("ram", UNKNOWN if machine.ram_bytes is None else words.bytes_(machine.ram_bytes)),
        ("gpu", _gpus(machine)),
        ("virtual", _virtual(machine)),
        ("software", _software(software)),
    ):
        table.add_row(name, fact)
    return table


def _gpus(machine: MachineFacts) -> str:
    if machine.gpus is None:
        return UNKNOWN
    driver = f"; driver {machine.gpu_driver}" if machine.gpu_driver else ""
    return (", ".join(machine.gpus) or "none found") + driver


def _virtual(machine: MachineFacts) -> str:
    answer = {True: "yes, by a hypervisor", False: "no", None: UNKNOWN}[machine.virtualised]
    return f"{answer}; in a container" if machine.container else answer


def _software(software: SoftwareFacts) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in software.versions.items())
    built = f"built for CUDA {software.torch_cuda}" if software.torch_cuda else "built without CUDA"
    device = "a CUDA device" if software.cuda_available else "no CUDA device"
    return f"{packages}; torch computes with {software.torch_threads} threads, {built}, {device}"


def _parts(parts: tuple[MeteredPart, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("metered by", overflow="fold")
    table.add_column("class", no_wrap=True)
    for part in parts:
        table.add_row(part.part, part.by, str(part.energy_class))
    return table


def _remedies(remedies: tuple[Remedy, ...]) -> Iterator[RenderableType]:
    if remedies:
        yield Text("")
        yield Text("To measure more", style="italic")
    width = max((len(remedy.place) for remedy in remedies), default=0)
    for remedy in remedies:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, min_width=width)
        table.add_column(overflow="fold")
        table.add_row(remedy.place, remedy.found)
        table.add_row("", remedy.do)
        yield table
        for line in remedy.lines:
            yield Text(f"  {line}", no_wrap=True, overflow="ignore")


def _or_unknown(number: int | None) -> str:
    return UNKNOWN if number is None else str(number)
