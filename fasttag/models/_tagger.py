"""What every tagger shares: which class is which, and jets in as well as prepared inputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ..jets import Jets


class Tagger(nn.Module):
    """Base of the taggers: `model(jets)` is `model.forward(model.recipe(jets))`, logits of shape (J, classes).

    classes : names of the classes in the order of the logits; class index = label.
    signal : index of the class that `models.score` gives the probability of.
    """

    recipe: ClassVar[Any]
    name: str  # set by models.build
    config: dict[str, Any]

    def __init__(self, classes: Sequence[str] = ("QCD", "top"), signal: int = 1) -> None:
        super().__init__()
        if not 0 <= signal < len(classes):
            raise ValueError(f"{type(self).__name__}: signal must index classes {tuple(classes)}, got {signal}; fix it")
        self.classes = tuple(classes)
        self.signal = signal

    def __call__(self, jets: Any) -> torch.Tensor:
        """Logits (J, classes) of Jets of any library (moved to the model's device and dtype), or of prepared inputs."""
        if isinstance(jets, Jets):
            weight = next(self.parameters())
            jets = jets.to(str(weight.device), library="torch").astype(str(weight.dtype).removeprefix("torch."))
            jets = type(self).recipe(jets)
        return super().__call__(jets)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them; He-uniform weights, zero biases (as in EnergyFlow)."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        linear = nn.Linear(a, b)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU(inplace=True)] if i < len(widths) - 2 else [linear]
    return nn.Sequential(*layers)
