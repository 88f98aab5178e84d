"""On how many machines pairs were made, and how far those lie apart."""

from __future__ import annotations

from dataclasses import dataclass

from tpsprune.claims.change import saving
from tpsprune.claims.pairs import count_pairs
from tpsprune.records import ComparisonRecord, joules_of


@dataclass(frozen=True, slots=True)
class MachinePairs:
    """The counted pairs of one machine, and the saving over them; ``None`` where not all have joules."""

    pairs: int
    saving_share: float | None


def by_machine(comparison: ComparisonRecord) -> tuple[MachinePairs, ...]:
    """Return what each machine found of the arm that was fixed beforehand, in the order of their first pairs.

    Each saving is 1 − exp(mean of ln(arm / baseline)) over that machine's pairs: what makes one machine draw
    more than another drops out of each ratio, so that savings which lie apart by more than pairs scatter
    hang on the machine. With few pairs a machine they scatter by themselves. Pairs made without a cluster
    count as those of one machine.
    """
    counted = count_pairs(comparison)
    found: dict[str, list[tuple[float | None, float | None]]] = {}
    for pair in counted.pairs:
        found.setdefault(counted.machine_of(pair), [])
    for mine, other in counted.couples(counted.design.primary):
        found[mine.machine].append((joules_of(mine.windows), joules_of(other.windows)))
    return tuple(
        MachinePairs(
            pairs=sum(counted.machine_of(pair) == machine for pair in counted.pairs),
            saving_share=saving(metered) if metered and len(metered) == len(costs) else None,
        )
        for machine, costs in found.items()
        for metered in [[(mine, other) for mine, other in costs if mine and other]]
    )
