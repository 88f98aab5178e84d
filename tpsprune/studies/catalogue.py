"""The studies there are, and the prediction that each puts to the test. Light: nothing is trained here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

__all__ = ["STUDIES", "Prediction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A published statement, its source, and the shipped recipe that the study is run on."""

    name: str
    statement: str
    source: str
    recipe: str

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain JSON values."""
        return asdict(self)


STUDIES: Final[Mapping[str, Prediction]] = {
    study.name: study
    for study in (
        Prediction(
            name="speed-up",
            statement="TPS converges 2–5× faster on structured tasks",
            source="Kim and Kim 2025, doi:10.5281/zenodo.18042384 (abstract; no formula is given there)",
            recipe="modular-addition",
        ),
        Prediction(
            name="reach",
            statement="TPS converges 2–5× faster on structured tasks, whichever they are",
            source="Kim and Kim 2025, doi:10.5281/zenodo.18042384 (abstract; no formula is given there)",
            recipe="modular-addition",
        ),
        Prediction(
            name="dimension",
            statement="after training with TPS the effective dimension is below a tenth of the width",
            source="Kim and Kim 2025, doi:10.5281/zenodo.18042384 (abstract; what N is, it does not say)",
            recipe="modular-addition",
        ),
        Prediction(
            name="draw-time",
            statement="only a ticket drawn after generalisation, rewound to init, learns without delay",
            source="Minegishi et al. 2023, arXiv 2310.19470 (of single weights, by magnitude)",
            recipe="modular-addition",
        ),
        Prediction(
            name="lead-time",
            statement="topological indicators warn of generalisation 100–500 epochs ahead",
            source="Kim and Kim 2025, doi:10.5281/zenodo.18042384 (abstract; no formula is given there)",
            recipe="modular-addition",
        ),
        Prediction(
            name="coupling",
            statement="the critical coupling goes as N^(−1/2), and the transition is continuous",
            source="Kim and Kim 2025, doi:10.5281/zenodo.18042384 (abstract; no formula, nor what N counts)",
            recipe="modular-addition",
        ),
    )
}
