"""Work queued on an accelerator: it belongs to the window that queued it."""

from __future__ import annotations

import sys

__all__ = ["finish_queued_work"]


def finish_queued_work() -> None:
    """Wait until CUDA has done what was queued; where torch or CUDA is not in use, do nothing.

    Neither is brought up for the asking: loading torch takes seconds, and a CUDA context takes memory
    and watts that would then be charged to the run.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
