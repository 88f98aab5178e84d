"""How the weights move: the spectral edge of the last updates, and whether the order of minibatches matters.

Shape letters: s snapshots, w = s − 1 updates, p numbers of all trainable parameters or of a snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any, Final, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from tpsprune.numerics.forward import evaluation_mode, fixed_seed, logits_of
from tpsprune.numerics.geometry import signed_fold
from tpsprune.numerics.peers import whole
from tpsprune.numerics.spectra import edge, edge_stability, gap_23, row_spectrum
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.signal import AbstractMemoryless, AbstractSignal, Packed, Readings, View

EXACT_BELOW = 10**6
CLEAR_STEPS: Final = 10
STEP_SIZE: Final = 1e-3
PAIRS: Final = 5
EDGE_SIGNALS: Final = (
    ("spectral_edge", "ratio"),
    ("spectral_edge_k", "place"),
    ("gap_23", "squared length"),
    ("edge_gap", "length"),
    ("edge_stability", "share"),
)
Part: TypeAlias = Literal["all", "attention"]
_ATTENTION: Final = re.compile(r"attn|attention", re.IGNORECASE)
_PROJECTIONS: Final = frozenset("qkvo")

Gradient = Callable[[Tensor], Tensor]


def trained_parameters(model: nn.Module, of: Part = "all") -> list[nn.Parameter]:
    """Return the parameters that train: all, or the matrices of attention alone.

    Of attention is a matrix whose path or whose module's class says ``attn`` or ``attention``, or that is of
    a layer called q, k, v or o. Biases, norms, embeddings and MLPs are not.
    """
    if of == "all":
        return [parameter for parameter in model.parameters() if parameter.requires_grad]
    found: dict[nn.Parameter, None] = {}
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if name in _PROJECTIONS or _ATTENTION.search(f"{path} {type(module).__name__}"):
            found |= {each: None for each in module.parameters() if each.requires_grad and each.ndim >= 2}
    return list(found)


def snapshot(model: nn.Module, seed: int, of: Part = "all") -> Tensor:
    """Return the parameters that train as one vector in float32: all numbers below 10⁶, else a signed fold.

    Both are linear, so differences of snapshots are (sketches of) updates.
    """
    parameters = trained_parameters(model, of)
    if sum(parameter.numel() for parameter in parameters) < EXACT_BELOW:
        flat = [whole(parameter.detach()).reshape(-1).to(torch.float32) for parameter in parameters]
        return torch.cat(flat) if flat else torch.empty(0)
    return signed_fold(parameters, seed=seed)


@dataclass(frozen=True, slots=True, eq=False)
class EdgeMemory:
    """The last snapshots with their steps, the shapes of their parameters, and the spectrum last read."""

    shapes: tuple[tuple[int, ...], ...] = ()
    steps: tuple[int, ...] = ()
    snapshots: tuple[Tensor, ...] = ()
    spectrum: tuple[float, ...] = ()


@final
class SpectralEdge(AbstractSignal[EdgeMemory]):
    """Reads the singular values σ of the last ``window`` updates between readings, not centred.

    ``spectral_edge``: σ_k / σ_{k+1} at the k ≤ window / 2 where it is largest, how far the leading directions
    stand out from the rest; ``spectral_edge_k``: that k; ``gap_23``: σ₂² − σ₃²; ``edge_gap``: σ_k − σ_{k+1};
    ``edge_stability``: ``numerics.spectra.edge_stability`` against the reading before. Until ``window``
    updates have been seen, and again after pruning has changed the parameters' shapes, they are not yet
    defined. ``of`` says whose updates: published work on language models takes all parameters, that on
    modular arithmetic the matrices of attention alone.

    Readings fewer than ten steps apart carry a caveat in their reason: between such snapshots the optimizer's
    momentum alone makes a ratio of up to 1.8 out of noise (1.04 at ten steps apart, 1.01 at 25). Beyond 10⁶
    parameters σ come from a sketch, within about 4 %.

    Cost: one read of the parameters, then window² multiply-adds for each number of a snapshot: 4 ms at 5·10⁴
    parameters, 50 at 9·10⁵, 5 at 5·10⁶ (sketched). Keeps window + 1 snapshots, 44 MB at the most by default.

    Source: Xu 2026 (arXiv 2603.15678 and 2603.28964).
    """

    name = "spectral_edge"

    def __init__(self, *, window: int, seed: int, of: Part = "all") -> None:
        self.window = window
        self.of = of
        self.seed = seed

    def start(self) -> EdgeMemory:
        """Return a memory without snapshots."""
        return EdgeMemory()

    def step(self, memory: EdgeMemory, view: View) -> tuple[EdgeMemory, Readings]:
        """Take a snapshot, and read the window once it is full."""
        shapes = tuple(tuple(each.shape) for each in trained_parameters(view.model, self.of))
        if memory.shapes != shapes:
            memory = EdgeMemory(shapes)
        kept = self.window + 1
        now_p = snapshot(view.model, self.seed, self.of)
        steps, snapshots = (*memory.steps, view.step)[-kept:], (*memory.snapshots, now_p)[-kept:]
        before, memory = memory.spectrum, EdgeMemory(shapes, steps, snapshots)
        updates = len(snapshots) - 1
        if updates < self.window:
            return memory, _without(view, Status.NOT_YET, f"{updates} of {self.window} updates seen")
        updates_wp = torch.stack(
            [later - earlier for earlier, later in pairwise(each.to(now_p.device) for each in snapshots)]
        )
        sigma_w = row_spectrum(updates_wp)
        if not sigma_w.isfinite().all():
            return memory, _without(view, Status.NOT_FINITE, "an update is not finite")
        found = edge(sigma_w, self.window // 2)
        if not found.k:
            reason = "the parameters have not moved" if shapes else f"no parameter is trained ({self.of})"
            return memory, _without(view, Status.NOT_APPLICABLE, reason)
        memory = replace(memory, spectrum=tuple(sigma_w.tolist()))
        figures = {
            "spectral_edge": found.ratio,
            "spectral_edge_k": float(found.k),
            "gap_23": float(gap_23(sigma_w)),
            "edge_gap": float(sigma_w[found.k - 1] - sigma_w[found.k]),
        }
        if before:
            figures["edge_stability"] = edge_stability(sigma_w, sigma_w.new_tensor(before), found.k)
        readings = tuple(
            Reading(
                signal=signal,
                step=view.step,
                epoch=view.epoch,
                value=figures[signal],
                unit=unit,
                reason=_caveat(steps),
            )
            if signal in figures
            else view.without(signal, unit, Status.NOT_YET, "the first full window: none before it")
            for signal, unit in EDGE_SIGNALS
        )
        return memory, readings

    def pack(self, memory: EdgeMemory) -> Packed:
        """Return the snapshots as one tensor; shapes and steps as lists."""
        tensors = {"snapshots": torch.stack(memory.snapshots)} if memory.snapshots else {}
        return tensors, {
            "shapes": [list(shape) for shape in memory.shapes],
            "steps": list(memory.steps),
            "spectrum": list(memory.spectrum),
        }

    def unpack(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> EdgeMemory:
        """Rebuild the memory; snapshots go to the model's device when next read."""
        return EdgeMemory(
            shapes=tuple(tuple(shape) for shape in values["shapes"]),
            steps=tuple(values["steps"]),
            snapshots=tuple(tensors["snapshots"].unbind()) if "snapshots" in tensors else (),
            spectrum=tuple(values.get("spectrum", ())),  # states from before it was kept have none
        )


def _caveat(steps: tuple[int, ...]) -> str:
    nearest = min(later - earlier for earlier, later in pairwise(steps))
    if nearest >= CLEAR_STEPS:
        return ""
    return f"snapshots {nearest} steps apart: momentum alone can make a ratio of 1.8"


def _without(view: View, status: Status, reason: str) -> Readings:
    return tuple(view.without(signal, unit, status, reason) for signal, unit in EDGE_SIGNALS)


def commutator_defect(
    theta_p: Tensor, gradient_a: Gradient, gradient_b: Gradient, step_size: float = STEP_SIZE
) -> float:
    """Return ‖θ_AB − θ_BA‖ / (‖η g_A‖ ‖η g_B‖): two steps of gradient descent in either order.

    θ_AB = θ − η g_A(θ) − η g_B(θ − η g_A(θ)), θ_BA the other way round. For small η it is
    ‖H_B g_A − H_A g_B‖ / (‖g_A‖ ‖g_B‖), the commutator of the two flows; zero for quadratic losses with
    one minimum and Hessians that commute. It is no share and grows with the curvature. A gradient of zero
    gives NaN.

    Args:
        theta_p: the parameters.
        gradient_a: the gradient of the loss on one batch, at any parameters.
        gradient_b: on the other.
        step_size: η.

    Cost: four gradients. In single precision some 10⁻⁷ / η of the gradients' own curvature is noise.

    Source: Xu 2026 (arXiv 2602.16746) and its code.
    """
    a_p, b_p = gradient_a(theta_p), gradient_b(theta_p)
    # Of the differences of gradients, not of parameters: those agree in all digits but the last.
    after_a_p = gradient_b(theta_p - step_size * a_p) - b_p
    after_b_p = gradient_a(theta_p - step_size * b_p) - a_p
    lengths = step_size * a_p.norm() * b_p.norm()
    return float((after_b_p - after_a_p).norm() / lengths)


@final
class CommutatorDefect(AbstractMemoryless):
    """Reads ``commutator_defect``: the median over five pairs of halves of the calibration data.

    Halves are sampled at each step, seeded by its number alone. The loss is cross-entropy, in evaluation
    mode, or with ``training`` as the source reads it: with dropout, the same in all gradients of a reading,
    and with batch norms over each half. The running moments are left alone either way. It rises long before
    a network generalises, and also on tasks that are never learned. Published work calls it risen at ten
    times the median of the first three readings and above 20.

    Cost: twenty gradients over half the calibration data: switch it on for a study, not by default.
    """

    name = "commutator_defect"

    def __init__(self, *, training: bool = False) -> None:
        self.training = training

    def read(self, view: View) -> Readings:
        """Read the defect."""
        batches = view.calibration_batches
        parameters = {
            name: each.detach() for name, each in view.model.named_parameters() if each.requires_grad
        }
        reason = view.why_no_loss
        if not view.labels or not all(isinstance(batch, Tensor) for batch in batches):
            reason = "the calibration data have no labels or are not tensors"
        elif not reason and sum(map(len, batches)) < 2:
            reason = "one item makes no pair"
        if reason:
            return (view.without(self.name, "", Status.NOT_APPLICABLE, reason),)
        inputs, labels = torch.cat(batches), torch.cat(view.labels)
        theta_p = torch.cat([each.flatten() for each in parameters.values()])
        generator = torch.Generator().manual_seed(view.step)
        half = len(inputs) // 2
        defects = []
        with _mode(view.model, training=self.training):
            for _ in range(PAIRS):
                shuffled = torch.randperm(len(inputs), generator=generator).to(inputs.device)
                gradient_a, gradient_b = (
                    _gradient(view.model, parameters, inputs[part], labels[part], view.step)
                    for part in (shuffled[:half], shuffled[half : 2 * half])
                )
                defects.append(commutator_defect(theta_p, gradient_a, gradient_b))
        return (view.reading(self.name, median(defects), ""),)


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set every module to evaluation or training mode, and restore each module's mode afterwards."""
    with evaluation_mode(model):
        model.train(training)
        yield


def _gradient(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Any, labels: Tensor, seed: int
) -> Gradient:
    """Return the gradient of the mean cross-entropy as a function of the flat parameters.

    Buffers are copies, so that a batch norm in training mode moves none of the model's; what is drawn is
    drawn by ``seed``.
    """
    buffers = dict(model.named_buffers())
    shapes = [(name, each.shape, each.numel()) for name, each in parameters.items()]

    def gradient(theta_p: Tensor) -> Tensor:
        theta_p = theta_p.detach().requires_grad_()
        parts = torch.split(theta_p, [count for _, _, count in shapes])
        held = {name: part.view(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)}
        held |= {name: each.clone() for name, each in buffers.items()}
        with torch.enable_grad(), fixed_seed(seed):
            logits_bc = logits_of(functional_call(model, held, (inputs,)))
            loss = functional.cross_entropy(logits_bc, labels)
            return torch.autograd.grad(loss, theta_p)[0]

    return gradient
