"""When to draw the ticket and when training is over: rules over readings, each verdict with its reason.

A rule is a value that holds settings; what it remembers is a value handed in and out (plain JSON), so
that a checkpoint keeps it. No model, no clock, no randomness: same readings, same verdicts.
"""

from tpsprune.stopping.rules import Memory, describe, start, step

__all__ = ["Memory", "describe", "start", "step"]
