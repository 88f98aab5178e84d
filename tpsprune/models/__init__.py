"""Models: small networks that the recipes name, those that are brought, and whether a model fits its data."""

from tpsprune.models.building import build, from_data
from tpsprune.models.cnn import Cnn
from tpsprune.models.fitting import check_fits
from tpsprune.models.mlp import Mlp, TokenMlp
from tpsprune.models.resnet import ResNet
from tpsprune.models.stored import WEIGHTS_PLACE, StoredWeights, stored_weights
from tpsprune.models.transformer import Transformer

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
