"""What a model weighs and how long it takes: size and latency."""

from tpsprune.measure.answering import answer_for
from tpsprune.measure.latency import latency, paired_latency
from tpsprune.measure.size import size

__all__ = ["answer_for", "latency", "paired_latency", "size"]
