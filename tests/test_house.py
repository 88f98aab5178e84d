"""The house, held: each foreign library has one owner, a file holds one idea. Floors: import-linter's."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "tpsprune"
STUDIES = ROOT / "tpsprune_studies"

OWNERS = {
    "click": {"cli", "studies"},
    "rich": {"cli", "report"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
    "torch_pruning": {"pruning"},
    "greenlet": {"pruning"},
    "codecarbon": {"energy"},
    "psutil": {"energy"},
    "pynvml": {"energy"},
    "sklearn": {"data"},
    "PIL": {"data"},
    "pydantic": {"recipe", "records", "studies"},
    "ripser": {"numerics"},
    "pyRipser": {"numerics"},
    "safetensors": {"runs"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "scipy": {"numerics"},
    "timm": {"models"},
    "torchvision": {"models"},
    "transformers": {"models", "adapters", "export"},
    "pytorch_lightning": {"adapters"},
    "accelerate": {"adapters"},
    "dask": {"jobs"},
    "distributed": {"jobs"},
}
TORCHLESS = {"cli", "claims", "recipe", "stopping", "records", "errors", "report", "jobs"}
MAX_LINES = 600

FILES = sorted((*HOUSE.rglob("*.py"), *STUDIES.rglob("*.py")))


def room_of(path: Path) -> str:
    if path.is_relative_to(STUDIES):
        return "studies"
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported_libraries(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_imports_go_down_the_floors() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_foreign_library_has_one_owner() -> None:
    strangers = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        for name in imported_libraries(path) & set(OWNERS)
        if room_of(path) not in OWNERS[name]
    }
    assert not strangers


def test_rooms_of_words_and_numbers_do_not_import_torch() -> None:
    assert not [path for path in FILES if room_of(path) in TORCHLESS and "torch" in imported_libraries(path)]


def test_a_file_holds_one_idea() -> None:
    long = {path.name: n for path in FILES if (n := len(path.read_text("utf-8").splitlines())) > MAX_LINES}
    assert not long
