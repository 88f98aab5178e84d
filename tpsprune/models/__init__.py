"""Models: small networks that the recipes name, and whether a model fits its data."""

from tpsprune.models.building import build
from tpsprune.models.cnn import Cnn
from tpsprune.models.fitting import check_fits
from tpsprune.models.mlp import Mlp, TokenMlp
from tpsprune.models.resnet import ResNet
from tpsprune.models.transformer import Transformer

__all__ = ["Cnn", "Mlp", "ResNet", "TokenMlp", "Transformer", "build", "check_fits"]
