"""Triadic phase synchronisation as a regulariser: our instantiation, since no formula has been published.

A group of N oscillators with phases θ has the energy E = mean over triads of 1 − cos(θ_i + θ_j − 2θ_k).
What carries a phase is the variant: ``weights``, ``neurons``, ``fourier`` or ``labels``, a file each.
"""

from tpsprune.tps.build import build
from tpsprune.tps.harm import coherence_warning
from tpsprune.tps.regulariser import Regulariser

__all__ = ["Regulariser", "build", "coherence_warning"]
