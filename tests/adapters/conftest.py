"""The libraries of the adapters import torchvision where it is installed, which may have to be helped."""

from tpsprune.models.libraries import help_torchvision

help_torchvision()
