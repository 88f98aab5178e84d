"""How far a model's output is from a teacher's: the term that distillation adds to the task's loss.

Shape letters: n items, c classes, t targets or labels of an item.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from tpsprune.numerics.forward import logits_of
from tpsprune.numerics.objective import IGNORED, Objective
from tpsprune.records import SQUARED


def distance(
    objective: Objective, output: Any, wanted: Any, labels: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return the mean distance of a batch's outputs from the teacher's, differentiable in ``output``.

    With τ = ``temperature`` and T the objective's own:

    - ``cross-entropy``, ``next-token``: τ² · KL(p ‖ q) in nats, p = softmax(teacher's scores / (T τ)), q of
      the output alike; the mean over the places that count. τ² keeps the gradient, which falls as 1/τ², at
      the size of the task's;
    - ``bce``: the same of each label by itself, p = sigmoid(teacher's score / τ); the mean over labels;
    - ``mse``, ``reconstruction``: the mean squared difference of the outputs; no temperature.

    Zero, and of no slope, where the outputs are the teacher's. It sees labels only as far as they say which
    places count. A loss of the user's own has no such distance: the recipe refuses it.

    Args:
        objective: of the task.
        output: scores (n, …, c) or (n, t), as ``Objective`` has them.
        wanted: the teacher's, of the same shape; no gradient goes there.
        labels: of the items.
        temperature: τ.

    Source: Hinton et al. 2015 (arXiv:1503.02531), sections 2 and 2.1.
    """
    assert objective.function is None, "the recipe refuses a loss of the user's own"
    scores, teacher = logits_of(output).float(), logits_of(wanted).detach().float()
    if objective.name in SQUARED:
        return functional.mse_loss(scores, teacher)
    warmth = objective.temperature * temperature
    scores, teacher = scores / warmth, teacher / warmth
    if objective.name == "bce":
        from_teacher = functional.binary_cross_entropy_with_logits(scores, teacher.sigmoid())
        entropy = functional.binary_cross_entropy_with_logits(teacher, teacher.sigmoid())
        return temperature**2 * (from_teacher - entropy)
    log_q, log_p = scores.log_softmax(-1), teacher.log_softmax(-1)
    divergence = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    counts = labels != IGNORED
    return temperature**2 * divergence.where(counts, 0.0).sum() / counts.sum().clamp(min=1)
