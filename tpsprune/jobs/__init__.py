"""Many jobs, side by side here or on the workers of a Dask cluster: each result as it comes.

What is due is asked again whenever a job has ended, and whoever takes the results keeps them: a job whose
worker died is due again, and one whose result is kept is never run twice.
"""

from tpsprune.jobs.crew import Due, Handle, LostJobError, run_afar, run_in_parallel, run_serially

__all__ = ["Due", "Handle", "LostJobError", "run_afar", "run_in_parallel", "run_serially"]
