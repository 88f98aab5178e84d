"""TPS and Watch in other people's trainers: a file for each library, which brings that library along.

``lightning`` (a callback) and ``huggingface`` (a callback, and what the loss takes). Accelerate needs none:
``examples/accelerate_loop.py`` is a loop without a trainer.
"""

from tpsprune.models.libraries import help_torchvision

# Both libraries import it where it is installed, and beside a CPU build of torch it may have to be helped.
help_torchvision()
