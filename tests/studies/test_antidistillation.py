"""The published rule beside what it must equal, and a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from tests.studies.conftest import Conducted, small_recipe
from tpsprune.numerics.decoding import draw_words
from tpsprune_studies import antidistillation
from tpsprune_studies.antidistillation import (
    DENSE,
    STRENGTHS,
    TEMPERATURES,
    TEXT,
    Protected,
    Taught,
    TeacherTraining,
    TeacherTrial,
    heated_to,
    protected_by,
    slope_of,
)
from tpsprune_studies.finding import Ruling

WORDS = 11


class Recurrent(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.cell, self.out = (
            nn.Embedding(WORDS, 8),
            nn.GRU(8, 12, batch_first=True),
            nn.Linear(12, WORDS),
        )

    def forward(self, words_nl: Tensor) -> Tensor:
        scores: Tensor = self.out(self.cell(self.words(words_nl))[0])
        return scores


def words(items: int, seed: int) -> Tensor:
    return torch.randint(WORDS, (items, 9), generator=torch.Generator().manual_seed(seed))


def slope(proxy: nn.Module) -> dict[str, Tensor]:
    drawn = words(32, 5)
    return slope_of(proxy, drawn[:, :-1], drawn[:, 1:])


def test_without_strength_it_is_plain_sampling_draw_for_draw() -> None:
    teacher, proxy = Recurrent(0), Recurrent(1)
    first = words(40, 0)[:, :1]
    with torch.no_grad():
        found = draw_words(
            Protected(teacher, proxy, slope(proxy), 0.0).follow, first, 7, torch.Generator().manual_seed(3)
        )
        generator, plain = torch.Generator().manual_seed(3), first
        for _ in range(6):
            drawn = torch.multinomial(teacher(plain)[:, -1].softmax(1), 1, generator=generator)
            plain = torch.cat([plain, drawn], 1)
        assert torch.equal(found, plain)
        other = draw_words(
            Protected(teacher, proxy, slope(proxy), 300.0).follow, first, 7, torch.Generator().manual_seed(3)
        )
        assert not torch.equal(other, plain)


def test_the_difference_is_the_derivative_along_the_gradient() -> None:
    proxy = Recurrent(1).double()
    along, read = slope(proxy), words(6, 2)
    parameters = dict(proxy.named_parameters())

    def scores(moved: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(proxy, moved, (read,))[:, -1].log_softmax(1)
        return found

    wanted = jvp(scores, (parameters,), (along,))[1].detach()
    with torch.no_grad():
        found = Protected(Recurrent(0), proxy, along, 1.0).rise(read)
    assert float(wanted.abs().max()) > 1e-3
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_a_step_towards_words_that_rise_raises_the_loss_of_the_proxy() -> None:
    proxy, drawn = Recurrent(1).double(), words(32, 5)
    with torch.no_grad():
        rise = Protected(Recurrent(0), proxy, slope(proxy), 1.0).rise(drawn[:4])

    def loss_at(moved: dict[str, Tensor]) -> float:
        scores = functional_call(proxy, moved, (drawn[:, :-1],))
        return float(nn.functional.cross_entropy(scores.flatten(0, 1), drawn[:, 1:].flatten()).detach())

    def loss_after(word_n: Tensor) -> float:
        named = dict(proxy.named_parameters())
        likely = proxy(drawn[:4])[:, -1].log_softmax(1).gather(1, word_n[:, None]).mean()
        steps = torch.autograd.grad(likely, list(named.values()))
        return loss_at(
            {name: each + 1e-3 * step for (name, each), step in zip(named.items(), steps, strict=True)}
        )

    before = loss_at(dict(proxy.named_parameters()))
    rises = 1e-3 * float(rise.max(1).values.mean())
    assert loss_after(rise.argmax(1)) - before == pytest.approx(rises, rel=0.05)
    assert loss_after(rise.argmin(1)) < before < loss_after(rise.argmax(1))


def make(last: float) -> list[TeacherTraining]:
    """Heat costs the student 0.5 bits a bit; the strongest protection costs ``last`` more than that."""

    def taught(judged: float, excess: float = 0.0) -> Taught:
        return Taught(
            student=3.0 + 0.5 * (judged - 2.0) + excess,
            under_dense=judged,
            under_ticket=judged,
            never_in_text=0.0,
        )

    found = []
    for trial in antidistillation.plan(antidistillation.make_setup(small_recipe(), 3, None), []).trials:
        assert isinstance(trial, TeacherTrial)
        sources = {TEXT: taught(2.0), DENSE: taught(2.0), protected_by(0.0): taught(2.0)}
        for rank, each in enumerate(STRENGTHS[1:]):
            judged = 2.1 + 0.2 * rank
            sources[protected_by(each)] = taught(judged, last + 0.001 * trial.seed)
        for rank, each in enumerate(TEMPERATURES):
            sources[heated_to(each)] = taught(2.5 + rank)
        found.append(
            TeacherTraining(trial=trial, dense=2.0, ticket=2.1, proxy=3.0, untrained=8.0, taught=sources)
        )
    return found


@pytest.mark.parametrize(
    ("last", "ruling"), [(0.2, Ruling.CONFIRMED), (-0.2, Ruling.REFUTED), (-0.002, Ruling.UNDECIDED)]
)
def test_protection_is_held_against_heat_of_the_same_quality(last: float, ruling: Ruling) -> None:
    found = antidistillation.conclude(antidistillation.make_setup(small_recipe(), 3, None), make(last), {})
    assert found.quantities[0].measured.mean == pytest.approx(last + 0.002)
    assert found.ruling is ruling


def test_where_no_temperature_goes_as_far_nothing_is_compared() -> None:
    (one, *_) = make(0.1)
    far = {
        **one.taught,
        protected_by(STRENGTHS[-1]): Taught(
            student=5.0, under_dense=9.0, under_ticket=9.0, never_in_text=0.0
        ),
    }
    training = TeacherTraining(trial=one.trial, dense=2.0, ticket=2.1, proxy=3.0, untrained=8.0, taught=far)
    assert training.excess(STRENGTHS[-1]) is None
    assert training.excess(STRENGTHS[1]) == pytest.approx(0.1 + 0.001 * one.trial.seed)


def test_a_small_study_teaches_from_every_source(conducted: Callable[[str], Conducted]) -> None:
    found = [
        each for each in conducted("antidistillation").finding.trainings if isinstance(each, TeacherTraining)
    ]
    assert len(found) == 2
    for each in found:
        assert list(each.taught) == [
            TEXT,
            DENSE,
            *map(protected_by, STRENGTHS),
            *map(heated_to, TEMPERATURES),
        ]
        assert each.taught[TEXT].never_in_text == 0.0
        assert each.taught[TEXT].under_dense != each.taught[TEXT].under_ticket
