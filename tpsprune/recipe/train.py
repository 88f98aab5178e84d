"""``[train]``, ``[retrain]``, ``[tps]``, ``[watch]`` and ``[energy]``: one training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Predicate

from tpsprune.recipe.bounds import (
    AtLeastZero,
    Count,
    Epochs,
    Natural,
    OpenShare,
    Positive,
    Share,
    Text,
    section,
)

Momentum = Annotated[float, Interval(ge=0.0, lt=1.0)]


@section
class Train:
    """How the model is trained; ``epochs`` is the whole budget, before and after pruning.

    A fraction of an epoch is rounded to whole steps.
    """

    epochs: Annotated[Epochs, Gt(0.0)]
    batch_size: Count | Literal["full"] = 128
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    """``muon``: hidden matrices and convolutions by orthogonalised momentum, at the step size of AdamW, which
    moves all else: embeddings, the last layer, vectors."""
    learning_rate: Positive = 1e-3
    weight_decay: AtLeastZero = 0.01
    momentum: Momentum = 0.9
    """SGD's and Muon's momentum (Nesterov's form)."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """AdamW's two averaging factors, for Muon of all that it leaves to AdamW."""
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup_share: Share = 0.1
    """Part of the schedule over which the learning rate rises from near zero."""
    label_smoothing: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0
    temperature: Positive = 1.0
    """T: the loss is that of softmax(scores / T). Above 1 scores must be larger for the same certainty; which
    class has the highest is not changed by it."""
    grokfast_gain: AtLeastZero = 0.0
    """Grokfast's λ: how much of the gradient's slow part is added to it; 0 for none."""
    grokfast_memory: Momentum = 0.98
    """Grokfast's α: what the slow part keeps of itself from step to step."""
    clip_norm: Positive | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where the device has fast bfloat16, else float32."""
    memory_format: Literal["auto", "contiguous", "channels-last"] = "auto"
    """``auto``: channels-last on a GPU, and on a CPU for nets of convolutions; a rule, no timing decides."""
    compile: bool = False
    """Train through ``torch.compile``, dense model and ticket each compiled anew, with CUDA graphs where they
    hold. It takes seconds, which are charged as phase ``compile``; needs a C++ compiler."""
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """Processor threads; without it as many as there are cores. Runs repeat bit for bit at equal threads."""
    shards: Count | None = None
    """Equal parts of a batch that are computed one by one or by several processes: each with batch-norm
    statistics and random numbers of its own, the step being the mean of all. Results hang on this number, not
    on how many processes there are. Without it as many as there are processes at the start, 1 of one."""
    spread: Literal["replicate", "shard"] | None = None
    """What each of several processes holds: the model, or a part of every weight, blocks being gathered one
    after another (``fully_shard``), for models that one device cannot hold. Needs a launcher (torchrun) and
    blocks that repeat; pruning then needs ``prune.gather``. Without it ``replicate``."""
    checkpoint_seconds: AtLeastZero = 20.0
    """Least time between two checkpoints for ``--resume``; 0 writes one at every reading."""


def _is_rewind(text: str) -> bool:
    return text in {"none", "init"} or re.fullmatch(r"epoch:[1-9][0-9]*", text) is not None


def rewind_epoch(rewind: str) -> int | None:
    """Return the epoch that ``rewind`` goes back to: 0 for ``init``, ``None`` for ``none``.

    >>> rewind_epoch("init"), rewind_epoch("epoch:3"), rewind_epoch("none")
    (0, 3, None)
    """
    if rewind == "none":
        return None
    return 0 if rewind == "init" else int(rewind.removeprefix("epoch:"))


@section
class Retrain:
    """Retraining of the pruned model."""

    epochs: Annotated[Epochs, Ge(0.0)] | Literal["rest"] = "rest"
    """``rest``: what the draw left of ``train.epochs``; with a rewind, what is left counted from there."""
    rewind: Annotated[str, Predicate(_is_rewind)] = "none"
    """``init`` or ``epoch:K``: the plan is replayed on those weights (a structured lottery ticket)."""
    optimizer: Literal["carry", "new"] = "carry"
    """``carry``: the moments of the kept units are kept; a rewind or an adapter always resets them."""
    teacher: Literal["none", "dense"] = "none"
    """``dense``: the dense model as it was drawn, from which the ticket learns beside the labels, after a
    rewind too. It costs a pass forward of the dense model a step."""
    teacher_share: Share = 0.5
    """a: the loss is (1 − a) · the task's + a · τ² · KL(dense ‖ ticket), of ``mse`` + a · the mean squared
    distance of the outputs. At 0 the teacher is not asked."""
    teacher_temperature: Positive = 2.0
    """τ: both distributions are softmax(scores / τ)."""
    adapter: Literal["none", "head", "lora", "singlora"] = "none"
    """Which numbers of the ticket train: all; the last linear layer, the rest in evaluation mode; or low-rank
    factors of a change of the weights of linear layers and convolutions, W + B A (``lora``) or W + A Aᵀ
    (``singlora``), which is part of the weights as soon as a step is done. TPS ends with the draw then."""
    adapter_rank: Count = 4
    """r of ``lora`` and ``singlora``; never more than a weight has rows or columns."""


@section
class Tps:
    """Which oscillators, how strongly coupled, and how the force is applied."""

    variant: Literal["auto", "none", "weights", "neurons", "moments", "fourier", "labels", "bn-l1"] = "auto"
    """``auto``: ``labels`` where nothing but a model's hidden units joins two tokens (an MLP on pairs), as
    the studies ``speed-up`` and ``reach`` found it the fastest there; none elsewhere, where they did not.
    ``bn-l1`` is no TPS but a baseline: λ · Σ |γ| over batch-norm scales, as published Early-Bird has it."""
    coupling: AtLeastZero = 1.0
    """λ: comparable with a weight decay when decoupled, a factor on the loss term otherwise; ``bn-l1`` has
    it multiply the sum of scales, published with 1e-4."""
    apply: Literal["auto", "decoupled", "loss"] = "auto"
    """``auto``: decoupled for ``weights`` and ``neurons``, in the loss for all others."""
    scaling: Literal["none", "sqrt-n"] = "none"
    """``sqrt-n`` multiplies λ by N^(−1/2), N the oscillators of a group: the published prediction."""
    warmup_share: Share = 0.05
    """Part of the budget over which λ rises linearly from zero."""
    refresh_steps: Count = 50
    """Steps between two fittings of the ``neurons`` variant's plane."""
    layers: tuple[Text, ...] = ()
    """Layers whose units ``moments`` couples, ``"path"`` or ``"gate * up"``; without any, the first."""
    degree: Literal[2, 3] = 2
    """How many inputs a triad of ``moments`` has besides the label."""


Signal = Literal[
    "d_eff",
    "h1",
    "spectral_edge",
    "norm",
    "mask_distance",
    "condensation",
    "collapse",
    "logit_rank",
    "neural_collapse",
    "commutator_defect",
    "intrinsic_dimension",
    "hessian",
]


@section
class Watch:
    """What is read while training. A reading is also the moment of journal and checkpoint."""

    signals: tuple[Signal, ...] = ("d_eff", "h1", "spectral_edge", "norm")
    every_epochs: Count | None = None
    """Epochs between two readings; give this or ``every_steps``, without either every epoch."""
    every_steps: Count | None = None
    validation: Literal["when-needed", "always"] = "when-needed"
    """Whether every reading validates, or those alone whose verdict hangs on it, and the last of a stage."""
    calibration_items: Annotated[int, Interval(ge=8, le=2**20)] = 256
    """Items of the fixed batch that signals are read on, sampled once from the training split."""
    h1_points: Annotated[int, Interval(ge=4, le=256)] = 128
    h1_every: Count = 1
    """Readings between two H1 readings: topology costs the most."""
    edge_window: Annotated[int, Interval(ge=4, le=64)] = 10
    """Updates in the spectral edge's rolling window."""
    commutator_mode: Literal["evaluation", "training"] = "evaluation"
    """In which mode ``commutator_defect`` is read: in training, as published, dropout and the batch norms'
    own moments count."""
    edge_parameters: Literal["all", "attention"] = "all"
    """Whose updates those are: of all parameters, or of the matrices of attention alone."""
    rank_share: OpenShare = 0.01
    """Singular values of the logits above this share of the largest count for ``logit_rank``."""


@section
class Energy:
    """How energy is metered; joules only, no CO₂."""

    meter: Literal["codecarbon", "fake", "replay", "none"] = "codecarbon"
    tracking: Literal["machine", "process"] = "machine"
    """Scope of the modelled parts; counters (RAPL, NVML) always see the whole device."""
    pue: Annotated[float, Ge(1.0)] = 1.0
    fake_cpu_watts: Positive = 10.0
    fake_ram_watts: AtLeastZero = 5.0
    fake_window_seconds: Positive = 1.0
    """The fake meter's clock: every window lasts this long."""
    fake_gpu_watts: AtLeastZero = 0.0
    """0 is no GPU at all."""
    fake_noise_share: Share = 0.0
    """Relative deviation of a window's joules, drawn from ``fake_seed``."""
    fake_seed: Natural = 0
    fake_fault: Literal["", "zero", "none", "jump", "wrap"] = ""
    """A fault of one window, as real meters have; the window is then invalid, with a message."""
    fake_fault_window: Natural = 0
    """Which window that is: the number closed before it."""
    replay: Text | None = None
    """The energy.jsonl of a run, for meter 'replay': its windows once more instead of new ones."""
