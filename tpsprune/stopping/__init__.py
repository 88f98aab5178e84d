"""When to draw the ticket and when training is over: rules over readings, each verdict with its reason.

A rule is a value that holds settings; what it remembers is a record passed in and returned, so that a
checkpoint can hold it. No model, no clock, no randomness: same readings, same verdicts.
"""

from tpsprune.stopping.rules import Memory, describe, needs_validation, recall, start, step

__all__ = ["Memory", "describe", "needs_validation", "recall", "start", "step"]
