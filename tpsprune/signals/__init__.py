"""What is read while training: each signal in a file of its own, all of them together in a ``Panel``."""

from tpsprune.signals.panel import Memories, Panel
from tpsprune.signals.signal import View

__all__ = ["Memories", "Panel", "View"]
