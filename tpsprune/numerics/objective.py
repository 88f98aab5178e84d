"""What a task is trained for and judged by: ``task.loss`` as the loss of a batch, sums over items, a quality.

Shape letters: n items, c classes, l places of an item, t targets or labels of an item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, Self, final

import torch
from torch import Tensor
from torch.nn import functional

from tpsprune.errors import Fault, RecipeError
from tpsprune.numerics.forward import logits_of
from tpsprune.recipe.user_code import resolve
from tpsprune.records import QUALITIES, SQUARED, quality_of, unit_of

IGNORED: Final = -100
"""The label of a place that counts for nothing, with ``next-token``."""
PLACE: Final = "task.loss"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums over items: of the loss, of what was right, and how many numbers the loss is a mean of.

    ``right`` is the number of right predictions; of a loss of squares the squared errors, by target.
    """

    loss: Tensor
    right: Tensor
    counted: Tensor

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.loss + other.loss, self.right + other.right, self.counted + other.counted)

    def scaled(self, factor: int) -> Sums:
        """Return all sums times a factor."""
        return Sums(self.loss * factor, self.right * factor, self.counted * factor)


@final
@dataclass(frozen=True, slots=True)
class Objective:
    """A loss and its quality; the scores of an output are ``logits_of`` it.

    - ``cross-entropy``: scores (n, c), labels (n,) of classes, in nats; quality is accuracy. Of scores
      (n, …, c) and labels (n, …) every place is an item.
    - ``next-token``: scores (n, l, c), labels (n, l), −100 where a place does not count; nats for each
      place; quality is the share of places whose highest score is the label.
    - ``bce``: scores (n, t), labels (n, t) of 0 and 1; nats for each label; quality is the share of labels
      on whose side of zero the score is.
    - ``mse``: scores (n, t), labels (n, t) or (n,), the mean of squares; quality is R², ``r_squared``.
    - ``reconstruction``: the same, and the labels (n, t) are the inputs themselves; R² is of all numbers
      together.
    - a function of the user's own, called with a model's output as it is and the labels; it returns the
      mean loss, or a mapping of ``loss`` and ``quality`` (1 is the best). Quality is what it returns, else
      accuracy where labels are classes (n,) and scores (n, c). Over batches both are means by items.
    """

    name: str
    function: Callable[[Any, Tensor], Any] | None = None
    temperature: float = 1.0
    """T, by which scores over classes are divided: probabilities are softmax(scores / T)."""

    @classmethod
    def of(cls, name: str, temperature: float = 1.0) -> Self:
        """Return the objective that ``task.loss`` names; **a dotted path runs the code of its module**.

        Raises:
            RecipeError: the path does not import, or names nothing to call.
        """
        return cls(name, None if name in QUALITIES else resolve(name, PLACE), temperature)

    @property
    def quality(self) -> str:
        """What the quality is called."""
        return quality_of(self.name)

    @property
    def unit(self) -> str:
        """The unit of the loss: ``nats``, or none (squares of the targets' own, or nobody knows)."""
        return unit_of(self.name)

    def loss(self, output: Any, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean loss of a batch, differentiable; smoothing is for losses over classes only.

        Raises:
            RecipeError: a function of the user's own raised, or returned no mean loss.
        """
        if self.function is not None:
            return self._own(output, labels)[0]
        scores = logits_of(output).float()
        match self.name:
            case "mse" | "reconstruction":
                return functional.mse_loss(scores, _as_scores(labels, scores))
            case "bce":
                return functional.binary_cross_entropy_with_logits(scores, labels.float())
            case "next-token":
                total = _entropy(scores / self.temperature, labels, "sum", label_smoothing)
                # A batch in which nothing counts has no loss; it is not to end the training.
                return total / (labels != IGNORED).sum().clamp(min=1)
            case _:
                return _entropy(scores / self.temperature, labels, "mean", label_smoothing)

    def sums(self, output: Any, labels: Tensor) -> Sums:
        """Return loss and right predictions, summed over a batch, without smoothing; differentiable.

        Raises:
            RecipeError: a function of the user's own raised, returned no mean loss, or no quality is known.
        """
        if self.function is not None:
            return self._own_sums(output, labels)
        scores = logits_of(output).float()
        if self.name in SQUARED:
            left = scores - _as_scores(labels, scores)
            squares_t = left.detach().double().square().reshape(len(left), -1).sum(0)
            return Sums(left.square().sum().double(), squares_t, _count(left))
        if self.name == "bce":
            labels = labels.float()
            total = functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
            return Sums(total.double(), ((scores > 0) == (labels > 0.5)).sum(), _count(labels))
        right = (scores.argmax(dim=-1) == labels).sum()
        total = _entropy(scores / self.temperature, labels, "sum", 0.0)
        return Sums(total.double(), right, (labels != IGNORED).sum())

    def figures(self, sums: Sums, labels: Tensor) -> tuple[float, float]:
        """Return mean loss and quality of all items summed up; ``labels`` are theirs."""
        counted = max(int(sums.counted), 1)
        loss = sums.loss.item() / counted
        if self.name in SQUARED:
            return loss, r_squared(sums.right, labels, pooled=self.name == "reconstruction")
        return loss, sums.right.item() / counted

    def chance(self, labels: Tensor, classes: int) -> float:
        """Return the quality of a prediction that ignores its input.

        1 / classes where classes are predicted, as if they were equally common; the share of the commonest
        token; for each label its commoner value, on average; 0 of R² and where nobody knows.
        """
        match self.name:
            case "mse" | "reconstruction":
                return 0.0
            case "bce":
                share_t = labels.double().mean(0)
                return torch.maximum(share_t, 1.0 - share_t).mean().item()
            case "next-token":
                counts = labels[labels != IGNORED].flatten().bincount()
                return counts.max().item() / max(int(counts.sum()), 1)
            case _:
                return 1.0 / classes if are_classes(labels) else 0.0

    def places(self, labels: Tensor) -> int:
        """Return how many predictions an item has: its tokens with ``next-token``, else one."""
        return labels.shape[1] if self.name == "next-token" else 1

    def _own(self, output: Any, labels: Tensor) -> tuple[Tensor, Any]:
        """Return loss and quality as the user's function has them; the quality is not checked here."""
        assert self.function is not None, "called only where there is one"
        try:
            loss = self.function(output, labels)
        except Exception as error:
            lines = str(error).strip().splitlines()
            raise self._fault(f"raised {': '.join([type(error).__name__, *lines[:1]])}") from error
        quality = None
        if isinstance(loss, Mapping):
            if set(loss) != {"loss", "quality"}:
                found = ", ".join(map(str, loss)) or "nothing"
                raise self._fault(f"returned a mapping of {found}; expected loss and quality")
            quality, loss = loss["quality"], loss["loss"]
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise self._fault(
                f"returned {found}; expected the mean loss, a tensor of one number, or a mapping of loss "
                "and quality"
            )
        return loss.reshape(()), quality

    def _own_sums(self, output: Any, labels: Tensor) -> Sums:
        loss, quality = self._own(output, labels)
        items = len(labels)
        if quality is not None:
            right = torch.tensor(self._share(quality) * items, dtype=torch.float64, device=loss.device)
        elif (scores := _scores_of_classes(output, labels)) is not None:
            right = (scores.argmax(dim=1) == labels).sum()
        else:
            raise self._fault(
                "returns a loss alone, and which of these predictions are right is undefined; return a "
                "mapping of loss and quality"
            )
        return Sums(loss.double() * items, right, torch.tensor(items, device=loss.device))

    def _share(self, quality: Any) -> float:
        try:
            share = float(quality.detach() if isinstance(quality, Tensor) else quality)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(quality).__name__
            raise self._fault(
                f"returned a quality that is no number ({kind}); expected one number"
            ) from error
        if not isfinite(share) or share > 1.0:
            raise self._fault(f"returned a quality of {share:g}; expected at most 1, the best there is")
        return share

    def _fault(self, message: str) -> RecipeError:
        return RecipeError("recipe", [Fault(PLACE, f"'{self.name}' {message}")])


CROSS_ENTROPY: Final = Objective("cross-entropy")


def r_squared(squares_t: Tensor, labels: Tensor, *, pooled: bool = False) -> float:
    """Return R², the share of the variance of the labels that is explained: a mean over targets.

    1 − squares left / squares about the labels' own mean, for each target. Below zero where the mean itself
    does better. Unchanged by shifting and scaling a target. A target that never varies counts 1 where it is
    hit exactly, else 0. ``pooled``: of the sums over all targets, so that each counts by how much it varies.

    Args:
        squares_t: squares left, summed over items.
        labels: (n, t) or (n,).
    """
    labels_nt = labels.double().reshape(len(labels), -1)
    about_t = (labels_nt - labels_nt.mean(0)).square().sum(0)
    if pooled:
        squares_t, about_t = squares_t.sum(0, keepdim=True), about_t.sum(0, keepdim=True)
    exact_t = (squares_t == 0).to(squares_t.dtype)
    return torch.where(about_t > 0, 1.0 - squares_t / about_t, exact_t).mean().item()


def are_classes(labels: Tensor) -> bool:
    """Return whether labels are one class for each item."""
    return labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool


def _entropy(scores: Tensor, labels: Tensor, reduction: str, label_smoothing: float) -> Tensor:
    return functional.cross_entropy(
        scores.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _as_scores(labels: Tensor, scores: Tensor) -> Tensor:
    """Return labels in the shape of the scores: (n,) and (n, 1) are the same numbers."""
    labels = labels.float()
    return labels if labels.shape == scores.shape else labels.reshape(scores.shape)


def _count(numbers: Tensor) -> Tensor:
    return torch.tensor(numbers.numel(), device=numbers.device)


def _scores_of_classes(output: Any, labels: Tensor) -> Tensor | None:
    with suppress(TypeError):
        scores = logits_of(output)
        return scores if are_classes(labels) and scores.ndim == 2 else None
    return None
