"""An architecture of transformers at the shapes of a pruned model, which no configuration of its own gives.

This file lies beside the weights of such a model, and needs torch and transformers alone:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

``config.pruned`` holds where the model differs from what its configuration builds: ``shapes`` of tensors by
name, and ``numbers`` that modules keep about them (heads, sizes), by module and attribute; one with a dot is
in the configuration that the module keeps. ``ranks`` are of layers that are split in two.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Architecture

    from tpsprune.numerics.low_rank_layer import low_rank_like  # Its code is below, where it is needed.
else:
    _Architecture = object


class PrunedModel(_Architecture):
    """Builds an architecture, the class beside it among its bases, and makes its tensors fewer and smaller.

    A tensor that the architecture has not (a bias) is added. Tied weights are tied again.
    """

    def __init__(self, config: Any, *inputs: Any, **options: Any) -> None:
        super().__init__(config, *inputs, **options)
        for name, shape in config.pruned["shapes"].items():
            place, _, own_name = name.rpartition(".")
            module = self.get_submodule(place)
            like = module._buffers.get(own_name)
            if like is not None:
                module._buffers[own_name] = like.new_zeros(shape)
            else:  # A new bias is like the weight beside it.
                like = next(module.parameters(recurse=False)).detach()
                setattr(module, own_name, nn.Parameter(like.new_zeros(shape)))
        for place, numbers in config.pruned["numbers"].items():
            module = self.get_submodule(place)
            for attribute, value in numbers.items():
                holder, _, own_name = attribute.rpartition(".")
                if holder:  # A number in the configuration that all modules share: this one gets its own.
                    setattr(module, holder, copy.copy(getattr(module, holder)))
                owner = getattr(module, holder) if holder else module
                setattr(owner, own_name, tuple(value) if isinstance(value, list) else value)
        for place, rank in config.pruned.get("ranks", {}).items():
            self.set_submodule(place, low_rank_like(self.get_submodule(place), rank))
        self.init_weights()
