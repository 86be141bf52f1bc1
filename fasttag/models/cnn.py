"""Convolutional network on jet images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..features import grey_image
from ._tagger import Tagger


class CNN(Tagger):
    """The CNN of the landscape comparison (arXiv:1902.09914, section 3.1; arXiv:1803.00107); 609,666 parameters.

    Four 4x4 convolutions (padding 1) with 128, 64, 64, 64 maps and max-pooling after the second and the fourth, then
    fully connected layers of 64, 256, 256, ReLU throughout.
    Input: `features.grey_image`, (J, 1, 40, 40). Differentiable in the weights, not in p4.
    """

    recipe = staticmethod(grey_image)

    def __init__(self, classes: Sequence[str] = ("QCD", "top"), signal: int = 1) -> None:
        super().__init__(classes, signal)
        conv = lambda a, b: [nn.Conv2d(a, b, 4, padding=1), nn.ReLU(inplace=True)]
        dense = lambda a, b: [nn.Linear(a, b), nn.ReLU(inplace=True)]
        self.maps = nn.Sequential(
            *conv(1, 128), *conv(128, 64), nn.MaxPool2d(2), *conv(64, 64), *conv(64, 64), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(
            *dense(64 * 8 * 8, 64), *dense(64, 256), *dense(256, 256), nn.Linear(256, len(classes))
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps(images).flatten(1))
