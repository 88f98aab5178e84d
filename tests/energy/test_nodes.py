"""Windows of several machines: joules add up, each machine's once; a missing machine is no zero."""

from __future__ import annotations

from typing import Any

import pytest

from tpsprune.energy import by_phase, join_nodes
from tpsprune.records import EnergyClass, Window

CLASSES = {"cpu": EnergyClass.MEASURED, "ram": EnergyClass.MODELLED}


def window(cpu: float = 4.0, ram: float = 1.0, **changed: Any) -> Window:
    fields: dict[str, Any] = {
        "phase": "train",
        "index": 3,
        "attempt": 0,
        "seconds": 2.0,
        "cpu_seconds": 1.5,
        "joules": {"cpu": cpu, "ram": ram},
        "classes": dict(CLASSES),
        "started": "",
    }
    return Window(**(fields | changed))


def test_joules_of_two_nodes_add_up_by_component() -> None:
    joined = join_nodes(window(), {1: [window(6.0, 2.0), window(1.0, 0.5)]})
    assert joined.joules == {"cpu": 4.0, "ram": 1.0, "node 1 cpu": 7.0, "node 1 ram": 2.5}
    assert joined.total_joules == pytest.approx(14.5)
    assert (joined.seconds, joined.cpu_seconds, joined.valid) == (2.0, 4.5, True)
    assert joined.classes["node 1 cpu"] is EnergyClass.MEASURED


def test_a_node_that_did_not_report_makes_the_phase_invalid() -> None:
    joined = join_nodes(window(), {1: [window()], 2: []})
    assert not joined.valid
    assert joined.fault == "node 2 did not report 'train' 3"
    assert joined.total_joules is None
    phase = by_phase([window(), joined])["train"]
    assert phase.joules is None
    assert not phase.valid


def test_a_node_without_a_meter_makes_no_sum() -> None:
    joined = join_nodes(window(), {1: [window(joules={}, classes={})]})
    assert joined.total_joules is None
    assert joined.fault == "node 1 metered nothing in 'train' 3"


def test_a_fault_of_another_node_is_named() -> None:
    joined = join_nodes(window(), {1: [window(valid=False, fault="the cpu counter did not move")]})
    assert not joined.valid
    assert joined.fault == "node 1: the cpu counter did not move"


def test_where_nothing_is_metered_nothing_is_missing() -> None:
    nothing = window(joules={}, classes={})
    joined = join_nodes(nothing, {1: [nothing]})
    assert joined.valid
    assert joined.total_joules is None
