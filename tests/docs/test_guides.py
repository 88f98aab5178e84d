"""Every guide under ``docs/`` is carried out as it stands: its files written, its commands and snippets run.

A fenced block with ``title="NAME"`` is a file; one of ``sh`` is commands; one of ``python`` is run in one
session with the other ``python`` blocks of its guide. Other blocks are shown only. A comment
``<!-- the test adds: WORDS -->`` before a block of commands adds words to its last command: for what takes
minutes as it stands.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(
    r'(?:<!-- the test adds: (?P<adds>[^>]*) -->\n)?^```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n'
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@dataclass(frozen=True)
class Block:
    kind: str
    title: str
    text: str
    adds: str


def blocks_of(text: str) -> list[Block]:
    return [
        Block(found["kind"], found["title"] or "", found["text"], found["adds"] or "")
        for found in BLOCK.finditer(text)
    ]


def script_of(blocks: list[Block]) -> str:
    """Return one program that does what the guide says, from top to bottom."""
    lines = ["import pathlib, subprocess", "session = {'__name__': 'guide'}"]
    for block in blocks:
        if block.title:
            lines.append(f"pathlib.Path({block.title!r}).parent.mkdir(parents=True, exist_ok=True)")
            lines.append(f"pathlib.Path({block.title!r}).write_text({block.text!r}, encoding='utf-8')")
        elif block.kind == "sh":
            commands = block.text.rstrip("\n") + (f" {block.adds}" if block.adds else "")
            lines.append(f"subprocess.run(['bash', '-euo', 'pipefail', '-c', {commands!r}], check=True)")
        elif block.kind == "python":
            lines.append(f"exec(compile({block.text!r}, 'guide', 'exec'), session)")
    return "\n".join(lines)


GUIDES = [
    page for page in PAGES if {each.kind for each in blocks_of(page.read_text("utf-8"))} & {"sh", "python"}
]
"""The pages that can be carried out; the others are for reference."""


def test_blocks_are_found_with_their_titles_and_what_the_test_adds() -> None:
    text = (
        'A\n\n```python title="nets.py"\nx = 1\n```\n\n'
        "<!-- the test adds: -v -->\n```sh\na\nb\n```\n\n```text\nno\n```\n"
    )
    assert blocks_of(text) == [
        Block("python", "nets.py", "x = 1\n", ""),
        Block("sh", "", "a\nb\n", "-v"),
        Block("text", "", "no\n", ""),
    ]


def test_a_guide_that_fails_fails_here(tmp_path: Path) -> None:
    for block in (Block("sh", "", "false | true\n", ""), Block("python", "", "assert 1 == 2\n", "")):
        done = subprocess.run(
            [sys.executable, "-c", script_of([block])], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode != 0


@pytest.mark.parametrize(
    "guide", [pytest.param(page, marks=pytest.mark.xdist_group(page.stem), id=page.stem) for page in GUIDES]
)
def test_a_guide_does_what_it_says(guide: Path, tmp_path: Path) -> None:
    blocks = blocks_of(guide.read_text(encoding="utf-8"))
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(["", str(ROOT)]),
        "COLUMNS": "80",
    }
    done = subprocess.run(
        [sys.executable, "-c", script_of(blocks)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "ARCHITECTURE.md"], ids=lambda path: path.stem
)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = [link for link in LINK.findall(prose) if not (page.parent / link).exists()]
    assert not broken


def test_the_readme_links_every_guide() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [guide.name for guide in PAGES if f"(docs/{guide.name})" not in readme] == []


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem
)
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`(?:tpsprune/)?((?!tests|benchmarks)\w+/\w+\.py)`", page.read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / "tpsprune" / name).exists()]
