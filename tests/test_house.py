"""The house, held: imports only go down, each foreign library has one owner, a file fits on a desk."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "tpsprune"

FLOORS = [
    {"cli", "adapters"},
    {"pipeline", "loop"},
    {"report", "studies"},
    {"data", "models", "training", "tps", "signals", "pruning", "energy", "claims", "export", "measure"},
    {"stopping", "runs", "numerics"},
    {"recipe"},
    {"records"},
    {"errors"},
]
OWNERS = {
    "click": {"cli"},
    "rich": {"cli", "report"},
    "matplotlib": {"report"},
    "torch_pruning": {"pruning"},
    "greenlet": {"pruning"},
    "codecarbon": {"energy"},
    "psutil": {"energy"},
    "pynvml": {"energy"},
    "sklearn": {"data"},
    "PIL": {"data"},
    "pydantic": {"recipe"},
    "ripser": {"numerics"},
    "pyRipser": {"numerics"},
    "safetensors": {"runs"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "scipy": {"numerics"},
    "jsonschema": {"runs"},
    "timm": {"models"},
    "torchvision": {"models"},
    "transformers": {"models", "adapters", "export"},
    "pytorch_lightning": {"adapters"},
    "accelerate": {"adapters"},
}
TORCHLESS = {"cli", "claims", "recipe", "stopping", "records", "errors", "report"}
MAX_LINES = 300

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(HOUSE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(HOUSE).parts[0]
    return first.removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            if node.module == "tpsprune":
                names.update(f"tpsprune.{alias.name}" for alias in node.names)
    return names


def imported_rooms(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported_modules(path))
    return {part[1] for part in parts if part[0] == "tpsprune" and len(part) > 1}


def test_every_room_is_on_a_floor() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_room_imports_only_from_lower_floors(path: Path) -> None:
    room = room_of(path)
    if room in {"__init__", "__main__"}:
        pytest.skip("the threshold of the house")
    upwards = {
        other
        for other in imported_rooms(path) - {room}
        if other not in FLOOR_OF or FLOOR_OF[other] <= FLOOR_OF[room]
    }
    assert not upwards, f"{room} may not import {sorted(upwards)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_foreign_library_has_one_owner(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imported_modules(path)} & set(OWNERS)
    assert all(room_of(path) in OWNERS[name] for name in foreign), foreign
    if room_of(path) in TORCHLESS:
        assert not any(name.split(".")[0] == "torch" for name in imported_modules(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_file_fits_on_the_desk(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
