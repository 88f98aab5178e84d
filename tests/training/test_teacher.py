"""Learning from a teacher: its share of the loss, what it costs nothing, and that it teaches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.training.test_loop import CPU, net, run, task
from tpsprune.numerics.distillation import distance
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.recipe.train import Train
from tpsprune.training import Teacher, make_optimizer

SETTINGS = Train(epochs=10, batch_size=32, learning_rate=0.02)


def other_net() -> nn.Module:
    torch.manual_seed(8)
    return nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3)).eval().requires_grad_(False)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def after(teacher: Teacher | None, **options: object) -> tuple[nn.Module, list[float]]:
    model = net()
    ticks = run(model, make_optimizer(model, SETTINGS), SETTINGS, teacher=teacher, **options)
    return model, [tick.loss.item() for tick in ticks]


@pytest.mark.parametrize(("share", "tau"), [(0.0, 2.0), (0.3, 4.0), (1.0, 1.0)])
def test_the_loss_is_the_blend_of_the_task_and_the_distance(share: float, tau: float) -> None:
    inputs, labels = task()
    output = net()(inputs)
    loss = CROSS_ENTROPY.loss(output, labels)
    found = Teacher(other_net(), share, tau).blend(
        loss, output, inputs, labels, objective=CROSS_ENTROPY, execution=CPU
    )
    away = distance(CROSS_ENTROPY, output, other_net()(inputs), labels, tau)
    torch.testing.assert_close(found, (1 - share) * loss + share * away)


def test_a_teacher_of_no_share_changes_no_bit_and_one_with_a_share_does() -> None:
    plain, losses = after(None)
    same, same_losses = after(Teacher(other_net(), 0.0, 2.0))
    taught, _ = after(Teacher(other_net(), 0.5, 2.0))
    assert torch.equal(weights(plain), weights(same))
    assert losses == same_losses
    assert not torch.equal(weights(plain), weights(taught))


def test_ticks_report_the_loss_of_the_task_alone() -> None:
    """So that a curve of losses does not jump where a teacher comes in."""
    first = [after(Teacher(other_net(), share, 2.0), last=1)[1] for share in (0.0, 1.0)]
    assert first[0] == first[1]


def test_a_model_that_is_its_own_teacher_and_learns_from_it_alone_stays_where_it_is() -> None:
    model = net()
    model[2] = nn.Identity()  # dropout is of the student alone
    before = weights(model)
    teacher = Teacher(copy.deepcopy(model).eval(), 1.0, 3.0)
    settings = Train(epochs=10, batch_size=32, optimizer="sgd", learning_rate=1.0, weight_decay=0.0)
    run(model, make_optimizer(model, settings), settings, teacher=teacher)
    torch.testing.assert_close(weights(model), before, atol=1e-4, rtol=0)


def test_a_teacher_is_left_as_it_is() -> None:
    teacher = other_net()
    before = weights(teacher)
    after(Teacher(teacher, 0.9, 2.0))
    assert torch.equal(weights(teacher), before)
    assert not teacher.training
    assert all(each.grad is None for each in teacher.parameters())


def test_a_student_that_hears_the_teacher_alone_comes_to_answer_like_it() -> None:
    """Labels are turned into noise: what is learned can come from the teacher only."""
    inputs, labels = task()
    teacher = net()
    run(teacher, make_optimizer(teacher, SETTINGS), SETTINGS, total=200)
    teacher.eval().requires_grad_(False)
    agreed = []
    for share in (0.0, 1.0):
        torch.manual_seed(12)
        student = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        noise = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))]
        optimizer = make_optimizer(student, SETTINGS)
        options = {"teacher": Teacher(teacher, share, 2.0)}
        run(student, optimizer, SETTINGS, total=200, data=(inputs, noise), **options)
        with torch.no_grad():
            same = student(inputs).argmax(1) == teacher(inputs).argmax(1)
        agreed.append(same.float().mean().item())
    assert agreed[1] > 0.95
    assert agreed[0] < 0.8


def test_numbers_are_learned_from_the_teachers_numbers() -> None:
    inputs, _ = task()
    torch.manual_seed(4)
    teacher = nn.Linear(6, 2).requires_grad_(False)
    student = nn.Linear(6, 2)
    settings = Train(epochs=20, batch_size=30, learning_rate=0.1, weight_decay=0.0)
    labels = torch.zeros(len(inputs), 2)
    options = {"objective": Objective.of("mse"), "teacher": Teacher(teacher, 1.0, 2.0)}
    run(student, make_optimizer(student, settings), settings, total=200, data=(inputs, labels), **options)
    torch.testing.assert_close(student.weight, teacher.weight, atol=0.05, rtol=0)
