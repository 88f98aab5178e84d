"""tpsprune.family: planned at once, drawn when asked, picked by what it may cost."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tpsprune
from tpsprune import measure, pruning
from tpsprune.errors import ArtifactError, PruneError

DATA = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets of what is drawn, as it is drawn."""
    found: list[str] = []
    own = pruning.draw

    def noting(model: nn.Module, batches: Any, settings: Any, planned: Any, **more: Any) -> Any:
        found.append(str(settings.target))
        return own(model, batches, settings, planned, **more)

    monkeypatch.setattr(pruning, "draw", noting)
    return found


def test_sizes_are_drawn_when_they_are_asked_for_and_once(drawn: list[str]) -> None:
    model = net()
    family = tpsprune.family(model, DATA, sizes=(0.25, 0.75, 0.5), quality="fast")
    assert (family.sizes, len(family), drawn) == ((0.75, 0.5, 0.25), 3, [])
    half = family[0.5]
    assert half is family[0.5]
    assert drawn == ["macs=0.5"]
    assert half.macs_share <= 0.5
    shares = [each.macs_share for each in family]
    assert shares == sorted(shares, reverse=True)
    assert drawn == ["macs=0.5", "macs=0.75", "macs=0.25"]
    with pytest.raises(KeyError, match=r"0\.75, 0\.5, 0\.25"):
        _ = family[0.6]


def test_the_largest_size_within_the_limits_is_picked_and_it_alone_drawn(drawn: list[str]) -> None:
    family = tpsprune.family(net(), DATA, sizes=(0.75, 0.5, 0.25), quality="fast")
    half = family.pick(macs=1500)
    assert drawn == ["macs=0.5"]
    assert measure.size(half.ticket, DATA[:2]).macs <= 1500
    assert family.pick(latency_seconds=60.0) is family[0.75]
    bytes_ = measure.size(family[0.25].ticket, DATA[:2]).bytes
    assert family.pick(bytes=bytes_) is family[0.25]
    with pytest.raises(
        PruneError, match=r"no size is within: the smallest, 0\.25, takes parameters \d+ for 3"
    ):
        family.pick(parameters=3)
    with pytest.raises(PruneError, match="pick needs a limit"):
        family.pick()


def test_a_further_size_is_planned_without_a_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    family = tpsprune.family(model, DATA, sizes=(0.75, 0.25), quality="fast")

    def look(*_: Any, **__: Any) -> Any:
        raise AssertionError("a second look")

    monkeypatch.setattr("tpsprune.pruning.planning.collect_statistics", look)
    family.add(0.5, 0.75)
    assert family.sizes == (0.75, 0.5, 0.25)
    for larger, smaller in pairwise(family):
        for big, small in zip(larger.plan.groups, smaller.plan.groups, strict=True):
            assert set(small.kept) <= set(big.kept)
    with pytest.raises(PruneError, match="a share above 0 and below 1"):
        family.add(0.6, 1.5)
    with pytest.raises(PruneError, match="cannot be reached"):
        family.add(0.6, 0.00001)
    assert family.sizes == (0.75, 0.5, 0.25)
    family.add()
    assert len(family) == 3


def test_a_family_repairs_as_an_extraction_does() -> None:
    family = tpsprune.family(net(), DATA, sizes=(0.5,), repair_steps=5)
    alone = tpsprune.extract(net(), DATA, tpsprune.Macs(0.5), repair_steps=5)
    assert family[0.5].notes == alone.notes
    for name, value in alone.ticket.state_dict().items():
        assert torch.equal(value, family[0.5].ticket.state_dict()[name])


def test_a_family_is_saved_and_one_size_loaded(tmp_path: Path) -> None:
    family = tpsprune.family(net(), DATA, sizes=(0.75, 0.5), quality="fast")
    tpsprune.save(family, tmp_path / "family")
    assert sorted(each.name for each in (tmp_path / "family").iterdir()) == ["0.5", "0.75"]
    loaded = tpsprune.load(tmp_path / "family", size=0.5, model=net())
    assert torch.equal(loaded(DATA), family[0.5].ticket(DATA))
    with pytest.raises(ArtifactError, match=r"no size 0\.3; there are 0\.75, 0\.5"):
        tpsprune.load(tmp_path / "family", size=0.3, model=net())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"by": "mac"}, r"by = 'mac'.*did you mean 'macs'"),
        ({"sizes": ()}, "at least one"),
        ({"sizes": (0.5, 1.5)}, "a share above 0 and below 1"),
        ({"low_rank": True}, "low_rank"),
        ({"rounds": 2}, "rounds"),
        ({"qualty": "fast"}, "did you mean 'quality'"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        tpsprune.family(net(), DATA, **more)
