"""What importing costs, and that everything public is documented by an example that runs."""

from __future__ import annotations

import doctest
import subprocess
import sys
from importlib import import_module

import pytest

import tpsprune

CLASSES = ("TPS", "Watch", "Meter", "EnergyUse", "Comparison", "extract")


def loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


@pytest.mark.parametrize("code", ["import tpsprune", "import tpsprune; dir(tpsprune); tpsprune.__all__"])
def test_importing_the_package_loads_neither_torch_nor_pydantic(code: str) -> None:
    assert loaded(code).isdisjoint({"torch", "numpy", "pydantic", "codecarbon", "click"})


def test_rules_and_a_meter_without_a_model_load_no_torch() -> None:
    assert "torch" not in loaded("import tpsprune; tpsprune.Plateau(); tpsprune.EnergyUse")


def test_who_penalises_loads_neither_pruning_nor_reports() -> None:
    assert loaded("import tpsprune; tpsprune.TPS").isdisjoint({"torch_pruning", "matplotlib", "codecarbon"})


@pytest.mark.parametrize("name", CLASSES)
def test_each_public_class_has_an_example_that_is_run(name: str) -> None:
    home = import_module(getattr(tpsprune, name).__module__)
    examples = [found for found in doctest.DocTestFinder().find(home) if found.examples]
    assert any(found.name.rpartition(".")[2] == name for found in examples)


def test_names_are_those_that_are_listed() -> None:
    assert set(tpsprune.__all__) == set(tpsprune._HOMES)
    assert set(tpsprune.__all__) <= set(dir(tpsprune))
