"""Computes the weights of a model with LoRAs in them, wherever the LoRAs of requests change: a step costs what it does without."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch


class MergedLoras:
    """Holds the layers that LoRAs adapt, and their weights as they were before any LoRA.

    A layer's weight is always W0 + s·B·A of the LoRAs in force (arXiv:2106.09685), computed from W0: of weights from which another
    LoRA had been subtracted the last bits would differ. So a merge makes the same bits whatever was merged before.

    Args:
        modules: The model's parts, with their LoRAs loaded. The layers that peft has put around their layers are taken out, so that
            compiled blocks are those of a model without LoRAs.
    """

    def __init__(self, modules: Iterable[torch.nn.Module]):
        # Here, since peft imports torch's compiler, which a model without LoRAs does without.
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._adapted: list[tuple[Any, dict[str, torch.Tensor]]] = []
        for module in modules:
            for parent in [*module.modules()]:
                for name, layer in [*parent.named_children()]:
                    if isinstance(layer, BaseTunerLayer):
                        own = layer.get_base_layer()
                        setattr(parent, name, own)
                        self._adapted.append((layer, {key: value.detach().clone() for key, value in own.named_parameters()}))
        self._in_force: tuple[tuple[str, float], ...] = ()

    def switch(self, loras: Sequence[tuple[str, float]]) -> None:
        """Set the weights to those with these LoRAs, by name and scale in this order, and with no others."""
        if (wanted := tuple(loras)) == self._in_force:
            return
        with torch.no_grad():
            for layer, before in self._adapted:
                self._merge(layer, before, wanted)
        self._in_force = wanted

    @staticmethod
    def _merge(layer: Any, before: dict[str, torch.Tensor], loras: Sequence[tuple[str, float]]) -> None:
        for key, value in layer.get_base_layer().named_parameters():
            value.data.copy_(before[key])
        layer.merged_adapters.clear()
        for name, scale in loras:
            if name in layer.scaling:
                layer.set_scale(name, scale)
                layer.merge(adapter_names=[name])
