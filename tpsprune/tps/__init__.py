"""Triadic phase synchronisation as a regulariser: our instantiation, since no formula has been published.

A group of N oscillators with phases θ has the energy E = mean over triads of 1 − cos(θ_i + θ_j − 2θ_k).
What is coupled is the variant: phases of ``weights`` or ``neurons``; a unit with two inputs and a label in
``moments``, ``fourier`` and ``labels``.
``bn-l1`` is a published baseline under the same setting, not TPS.
"""

from tpsprune.tps.regulariser import Regulariser, build

__all__ = ["Regulariser", "build"]
