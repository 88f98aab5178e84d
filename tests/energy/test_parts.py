"""The grade of a machine, from who meters which part of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.energy.parts import grade_of, parts_of
from tpsprune.records import EnergyClass, EnergyMethod, MeteredPart

MEASURED, MODELLED = EnergyClass.MEASURED, EnergyClass.MODELLED
CONSTANT, NONE = EnergyClass.CONSTANT, EnergyClass.NONE


def part(name: str, energy_class: EnergyClass, watts: float | None = None) -> MeteredPart:
    return MeteredPart(part=name, by="", energy_class=energy_class, watts=watts)


RAM = part("ram", CONSTANT, 20.0)


@pytest.mark.parametrize(
    ("parts", "letter", "meaning"),
    [
        ([part("cpu", MEASURED)], "B", "hardware counters for cpu"),
        ([part("cpu", MEASURED), RAM], "C", "B where the 20 W assumed for ram are below a tenth"),
        ([part("cpu", MEASURED), part("gpu", MEASURED), RAM], "C", "hardware counters for cpu and gpu; B"),
        (
            [part("cpu", MODELLED, 360.0), part("gpu", MEASURED), RAM],
            "C",
            "a hardware counter for gpu, a model for the rest",
        ),
        (
            [part("cpu", MEASURED), part("gpu", NONE), RAM],
            "C",
            "a hardware counter for cpu, a model for the rest; gpu is not metered at all",
        ),
        (
            [part("cpu", MODELLED, 65.0), RAM],
            "D",
            "a load model: 20 of 85 W at full load are assumed constant",
        ),
        ([part("cpu", MODELLED, 8.0), part("gpu", MODELLED, 300.0), RAM], "D", "20 of 328 W"),
        ([part("cpu", MODELLED, 8.0), RAM], "E", "mostly constants times time: 20 of 28 W"),
        ([part("cpu", CONSTANT, 65.0), RAM], "E", "mostly constants times time: 85 of 85 W"),
        ([part("cpu", MODELLED, 8.0), part("gpu", MODELLED), RAM], None, "not all known"),
        ([], None, "nothing is metered here"),
    ],
)
def test_a_machine_has_the_grade_of_its_dominant_parts(
    parts: list[MeteredPart], letter: str | None, meaning: str
) -> None:
    found, words = grade_of(parts)
    assert found == letter
    assert meaning in words


@given(cpu=st.floats(1.0, 1e3), ram=st.floats(1.0, 1e3))
def test_without_counters_it_is_e_where_constants_are_more_than_half(cpu: float, ram: float) -> None:
    letter, _ = grade_of([part("cpu", MODELLED, cpu), part("ram", CONSTANT, ram)])
    assert letter == ("E" if ram > (cpu + ram) / 2 else "D")


def method(classes: dict[str, EnergyClass], **details: str) -> EnergyMethod:
    return EnergyMethod(meter="codecarbon", scope="machine", classes=classes, details=details)


def test_each_part_says_who_meters_it() -> None:
    found = parts_of(
        method(
            {"ram": CONSTANT, "cpu": MODELLED, "gpu": MODELLED},
            cpu_mode="cpu_load",
            cpu_rated_watts="8",
            ram_mode="constant",
            ram_watts="20",
            gpu_mode="power samples",
        ),
        gpu_watts=300.0,
        has_gpu=True,
    )
    assert [(each.part, each.by, each.watts) for each in found] == [
        ("cpu", "load model, 8 W at full load", 8.0),
        ("gpu", "power samples, one a second", 300.0),
        ("ram", "constant 20 W, from its size", 20.0),
    ]


def test_a_counter_assumes_no_watts_and_a_gpu_that_nobody_meters_is_named() -> None:
    details = {"cpu_mode": "intel_rapl", "ram_watts": "20"}
    found = parts_of(method({"cpu": MEASURED, "ram": CONSTANT}, **details), has_gpu=True)
    assert [(each.part, each.by, each.energy_class) for each in found] == [
        ("cpu", "RAPL counter", MEASURED),
        ("gpu", "nothing", NONE),
        ("ram", "constant 20 W, from its size", CONSTANT),
    ]
    assert found[0].watts is None
    (odd,) = parts_of(method({"cpu": MODELLED}, cpu_mode="a mode of tomorrow"))
    assert (odd.by, odd.watts) == ("a mode of tomorrow", None)
