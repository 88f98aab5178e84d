"""The theory, system by system: what it claims, what was built of it, and what came out: one page.

Words are in ``theory.toml``. What a study has found is read from its figures, so that the page says what they
say; where a study has none yet, the page says that.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tpsprune.errors import RunFolderError
from tpsprune.runs import read_json, write_text_atomically
from tpsprune_studies.catalogue import STUDIES
from tpsprune_studies.finding import load_words

NOT_RUN: Final = "not run here"
NOT_BUILT: Final = "not built"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A system of the theory: its claim and source, what was built, the command, and what came out.

    ``study`` names the study whose figures say what came out, in place of ``measured`` and ``verdict``.
    ``rest`` is what is not built or not shown.
    """

    name: str
    claim: str
    source: str
    built: str
    command: str = ""
    study: str = ""
    measured: str = ""
    verdict: str = ""
    rest: str = ""


SYSTEMS: Final[tuple[System, ...]] = tuple(
    System(**words)
    for words in tomllib.loads(Path(__file__).with_name("theory.toml").read_text(encoding="utf-8"))["system"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came out of a system, and where that is."""

    system: System
    measured: str
    verdict: str
    command: str


def write_theory(studies: Path) -> Path:
    """Write ``theory.md`` beside a folder of studies, from the figures in it; return its path.

    Raises:
        RunFolderError: figures are damaged, or the page cannot be written.
    """
    page = studies.parent / "theory.md"
    write_text_atomically(page, render_theory(collect_outcomes(studies), studies.name))
    return page


def collect_outcomes(studies: Path) -> tuple[Outcome, ...]:
    """Return what came out of every system, in order."""
    return tuple(_outcome(system, studies) for system in SYSTEMS)


def render_theory(outcomes: tuple[Outcome, ...], folder: str) -> str:
    """Return the page in Markdown; ``folder`` is that of the studies' pages, as seen from it."""
    counted = Counter(each.verdict for each in outcomes if each.system.study or each.verdict == NOT_BUILT)
    words = {"outcomes": outcomes, "counted": counted.most_common(), "folder": folder}
    return str(load_words("theory").render(words)) + "\n"


def _outcome(system: System, studies: Path) -> Outcome:
    if not system.study:
        verdict = system.verdict or NOT_BUILT
        return Outcome(system=system, measured=system.measured, verdict=verdict, command=system.command)
    found = _figures(studies / f"{system.study}.json")
    command = f"tpsprune study {system.study}"
    if found is None:
        return Outcome(system=system, measured="", verdict=NOT_RUN, command=command)
    return Outcome(
        system=system, measured=found["sentence"], verdict=found["verdict"], command=found["command"]
    )


def _figures(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not {"sentence", "verdict", "command"} <= found.keys():
        raise RunFolderError(f"{path} is not the figures of a study; run 'tpsprune study {path.stem}' again")
    assert path.stem in STUDIES, "theory.toml names studies that there are"
    return found
