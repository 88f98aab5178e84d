"""Accuracy straight after pruning, ours and every baseline's; repair, speed, time.

    python benchmarks/one_shot.py                       # writes reports/one_shot.md and .json
    python benchmarks/one_shot.py --nets digits,fashion --seeds 1
    python benchmarks/one_shot.py --quick               # digits alone, a few minutes; prints only
    python benchmarks/one_shot.py --parts time          # ResNet-50's extraction time and memory
    python benchmarks/one_shot.py --train-only --nets resnet20        # on a machine with a GPU, say

Dense nets are trained once and kept (``benchmarks/zoo/places.py`` has the places of nets
and data). Every row is journalled, so that a benchmark that was killed resumes; a change of the code
measured begins a new journal.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.one_shot_conduct import main

if __name__ == "__main__":
    main()
