"""Neural collapse: the simplex frame, its perturbation in closed form, and what leaves the figures alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tpsprune.numerics.neural_collapse import neural_collapse


def frame(classes: int, features: int) -> Tensor:
    """Return C unit vectors at equal angles in d ≥ C − 1 dimensions, turned at random."""
    centred_cc = torch.eye(classes, dtype=torch.float64) - 1 / classes
    basis_cd = torch.linalg.qr(torch.randn(features, classes, dtype=torch.float64)).Q.T
    return math.sqrt(classes / (classes - 1)) * centred_cc @ basis_cd


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_of_a_simplex_frame_with_weights_alike_all_are_zero(classes: int) -> None:
    torch.manual_seed(classes)
    means_cd = frame(classes, 16)
    labels = torch.arange(classes).repeat(5)
    found = neural_collapse(3.0 * means_cd[labels] + 7.0, labels, labels, 0.2 * means_cd)
    figures = (found.nc1, found.nc2_norms, found.nc2_angles, found.nc3, found.nc4)
    assert figures == pytest.approx((0.0,) * 5, abs=1e-12)


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_noise_within_the_frame_gives_nc1_in_closed_form(epsilon: float) -> None:
    torch.manual_seed(0)
    classes = 5
    means_cd = frame(classes, 8)
    axes_kd = torch.linalg.svd(means_cd, full_matrices=False).Vh[: classes - 1]
    noise = torch.cat([axes_kd, -axes_kd]) * epsilon  # Variance ε² / (C − 1) along each of C − 1 axes.
    features = (means_cd[:, None] + noise).flatten(0, 1)
    labels = torch.arange(classes).repeat_interleave(len(noise))
    found = neural_collapse(features, labels, labels)
    assert found.nc1 == pytest.approx(epsilon**2 * (classes - 1) / classes)
    assert found.nc2_norms == pytest.approx(0.0, abs=1e-12)
    assert found.nc3 is None


def test_of_a_few_classes_it_is_the_formula_with_whole_matrices() -> None:
    torch.manual_seed(1)
    features, labels = torch.randn(60, 7, dtype=torch.float64), torch.arange(60) % 4
    features += 2 * torch.randn(4, 7, dtype=torch.float64)[labels]
    decided, weight = torch.randint(4, (60,)), torch.randn(4, 7, dtype=torch.float64)
    means = torch.stack([features[labels == c].mean(0) for c in range(4)])
    m = means - means.mean(0)
    left = features - means[labels]
    within = torch.stack([torch.outer(each, each) for each in left]).mean(0)
    cosines = [
        abs(float(m[a] @ m[b] / (m[a].norm() * m[b].norm())) + 1 / 3)
        for a in range(4)
        for b in range(4)
        if a != b
    ]
    nearest = torch.stack([(means - h).norm(dim=1).argmin() for h in features])
    found = neural_collapse(features, labels, decided, weight)
    inverse = torch.linalg.pinv(m.T @ m / 4, rtol=1e-10)
    assert found.nc1 == pytest.approx(float((within @ inverse).trace()) / 4)
    assert found.nc2_norms == pytest.approx(float(m.norm(dim=1).std(correction=0) / m.norm(dim=1).mean()))
    assert found.nc2_angles == pytest.approx(sum(cosines) / len(cosines))
    assert found.nc3 == pytest.approx(float((weight / weight.norm() - m / m.norm()).square().sum()))
    assert found.nc4 == pytest.approx(float((nearest != decided).double().mean()))


def test_it_does_not_hang_on_scale_shift_turn_or_the_names_of_classes() -> None:
    torch.manual_seed(2)
    features, labels = torch.randn(90, 6, dtype=torch.float64), torch.arange(90) % 3
    features += torch.randn(3, 6, dtype=torch.float64)[labels]
    weight = torch.randn(3, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    first = neural_collapse(features, labels, labels, weight)
    wide = torch.zeros(9, 6, dtype=torch.float64)
    wide[torch.tensor([8, 2, 5])] = weight @ turn
    names = torch.tensor([8, 2, 5])[labels]
    second = neural_collapse(5 * features @ turn + 1, names, names, wide)
    for name in ("nc1", "nc2_norms", "nc2_angles", "nc3", "nc4"):
        assert getattr(second, name) == pytest.approx(getattr(first, name))


def test_classes_of_one_mean_have_no_finite_nc1_and_one_class_is_refused() -> None:
    labels = torch.arange(8) % 2
    assert neural_collapse(torch.ones(8, 3), labels, labels).nc1 == math.inf
    with pytest.raises(ValueError, match="two classes"):
        neural_collapse(torch.randn(8, 3), torch.zeros(8, dtype=torch.int64), labels)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_directions_in_which_the_means_differ_by_rounding_alone_do_not_count(shift: float) -> None:
    torch.manual_seed(0)
    means = torch.randn(10, 2, dtype=torch.float64)
    labels = torch.arange(10).repeat_interleave(100)
    plane = torch.randn(2, 64, dtype=torch.float64)
    wide = (means[labels] + 1e-3 * torch.randn(1000, 2, dtype=torch.float64)) @ plane + shift
    exact = neural_collapse(wide, labels, labels).nc1
    assert exact < 1e-5
    assert neural_collapse(wide.float(), labels, labels).nc1 == pytest.approx(exact, rel=0.05)
