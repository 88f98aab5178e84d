"""Training: a generator of ticks, and what it needs. Watching is the body of the caller's ``for``."""

from tpsprune.training.adapters import RAMP_SHARE, Adapter, find_adapted
from tpsprune.training.device import (
    Execution,
    choose_device,
    load_random_state,
    prepare_process,
    random_state,
    require_compiler,
)
from tpsprune.training.evaluate import Score, evaluate
from tpsprune.training.frozen import Head, features_of, find_head, fit_head
from tpsprune.training.launch import Job, gathered
from tpsprune.training.loop import Penalty, Tick, batch_items, count_steps, fit, shuffled, steps_per_epoch
from tpsprune.training.optimizers import load_state_by_name, make_optimizer, state_by_name
from tpsprune.training.spread import (
    Moments,
    check_spread,
    deal_out,
    gather,
    is_spread,
    spread_out,
    tied_names,
    without_numbers,
)
from tpsprune.training.teacher import Teacher

__all__ = [
    "RAMP_SHARE",
    "Adapter",
    "Execution",
    "Head",
    "Job",
    "Moments",
    "Penalty",
    "Score",
    "Teacher",
    "Tick",
    "batch_items",
    "check_spread",
    "choose_device",
    "count_steps",
    "deal_out",
    "evaluate",
    "features_of",
    "find_adapted",
    "find_head",
    "fit",
    "fit_head",
    "gather",
    "gathered",
    "is_spread",
    "load_random_state",
    "load_state_by_name",
    "make_optimizer",
    "prepare_process",
    "random_state",
    "require_compiler",
    "shuffled",
    "spread_out",
    "state_by_name",
    "steps_per_epoch",
    "tied_names",
    "without_numbers",
]
