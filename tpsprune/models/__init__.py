"""Models: small networks, those of libraries and of users, and whether a model fits its data."""

from tpsprune.models.architectures import Cnn, Mlp, ResNet, TokenMlp, Transformer
from tpsprune.models.building import build, from_data
from tpsprune.models.fitting import check_fits
from tpsprune.models.weights import WEIGHTS_PLACE, StoredWeights, stored_weights

__all__ = [
    "WEIGHTS_PLACE",
    "Cnn",
    "Mlp",
    "ResNet",
    "StoredWeights",
    "TokenMlp",
    "Transformer",
    "build",
    "check_fits",
    "from_data",
    "stored_weights",
]
