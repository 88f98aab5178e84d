"""``tpsprune doctor`` on this very machine, and how it reads on others."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from tpsprune.energy.counters import find_rapl
from tpsprune.records import Diagnosis, EnergyClass, MachineFacts, MeteredPart, Remedy, SoftwareFacts
from tpsprune.report.checks import diagnosis_tables
from tpsprune.report.live import OurConsole

Invoke = Callable[..., Result]

FOUND = Diagnosis(
    machine=MachineFacts(
        cpu_model="Intel(R) Xeon(R) Platinum 8480C with a name that goes on and on and on and on",
        logical_cpus=None,
        ram_bytes=None,
        virtualised=None,
        container=True,
        gpus=("NVIDIA H100 80GB HBM3",) * 8,
        gpu_driver="575.57",
    ),
    software=SoftwareFacts(
        versions={"python": "3.11.7", "torch": "2.13.0+cu130"},
        torch_threads=96,
        torch_cuda="13.0",
        cuda_available=True,
    ),
    parts=(
        MeteredPart(part="cpu", by="load model, 350 W at full load", energy_class=EnergyClass.MODELLED),
        MeteredPart(part="gpu", by="NVML energy counter", energy_class=EnergyClass.MEASURED),
    ),
    grade="C",
    grade_meaning="a hardware counter for gpu, a model for the rest",
    remedies=(
        Remedy(
            place="cpu",
            found="RAPL counters are here but may not be read (package-0: Permission denied).",
            do="Let everybody read them, now and after each start:",
            lines=('SUBSYSTEM=="powercap", KERNEL=="*:*", RUN+="/bin/chmod a+r /sys%p/energy_uj"',),
        ),
    ),
)


def rendered(found: Diagnosis) -> list[str]:
    console = OurConsole(file=io.StringIO(), width=80)
    console.print(diagnosis_tables(found), highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_page_is_80_columns_wide_and_lines_to_copy_are_whole() -> None:
    lines = rendered(FOUND)
    assert max(map(len, lines)) <= 80
    assert f"  {FOUND.remedies[0].lines[0]}" in lines
    text = " ".join(" ".join(lines).split())
    for words in (
        "unknown logical CPUs",
        "ram unknown",
        "virtual unknown; in a container",
        "driver 575.57",
        "torch computes with 96 threads, built for CUDA 13.0, a CUDA device",
        "gpu NVML energy counter measured",
        "Grade C: a hardware counter for gpu, a model for the rest",
    ):
        assert words in text, text


def test_without_a_meter_there_is_no_grade_and_no_table() -> None:
    nothing = replace(FOUND, parts=(), grade=None, grade_meaning="nothing is metered", remedies=())
    text = "\n".join(rendered(nothing))
    assert "Grade unknown: nothing is metered" in text
    assert "metered by" not in text
    assert "To measure more" not in text


def test_this_machine_is_described_as_it_is(invoke: Invoke, tmp_path: Path) -> None:
    import torch

    before = set(tmp_path.iterdir())
    result = invoke("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["schema"] == "tpsprune.doctor/1"
    assert found["machine"]["logical_cpus"] == os.cpu_count()
    assert found["software"]["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["software"]["cuda_available"] == torch.cuda.is_available()
    classes = {part["part"]: part["energy_class"] for part in found["parts"]}
    assert {"cpu", "ram"} <= set(classes)
    if not find_rapl() and not found["machine"]["gpus"]:
        assert classes["cpu"] == "modelled"
        assert found["grade"] in {"D", "E"}
        assert "No RAPL counter" in found["remedies"][0]["found"]
    shown = invoke("doctor")
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    assert "\x1b" not in shown.output
    assert f"Grade {found['grade']}" in shown.output
    assert set(tmp_path.iterdir()) == before


def test_settings_from_outside_are_named_and_nothing_is_metered(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODECARBON_PUE", "3")
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    assert "settings  CODECARBON_PUE: codecarbon would use this" in result.output
    assert "\n  unset CODECARBON_PUE\n" in result.output
    assert "Grade unknown: nothing is metered here" in result.output
