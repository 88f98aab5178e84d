"""A recipe: read from TOML, every fault at once, frozen thereafter.

The sections are dataclasses, one file each, named after the package that reads them; ``read`` is the
only way in from outside. The one thing in a recipe that can run code is a dotted path (``dotted``).
"""

from tpsprune.recipe.read import locate, parse, read
from tpsprune.recipe.schema import Recipe
from tpsprune.recipe.write import dumps

__all__ = ["Recipe", "dumps", "locate", "parse", "read"]
