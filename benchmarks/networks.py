"""What the benchmarks of Particle Transformer and ParticleNet share: inputs, padded for the peers, and weaver-core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fasttag
from fasttag import features
from fasttag.features import Inputs
from peers import Child
from problems import Problem


def inputs_of(p: Problem) -> Inputs:
    return features.kin(fasttag.Jets(p.p4, p.offsets).to(library="torch"))


def of_length(p: Problem, n: int) -> Problem:
    """The first jet with n constituents, or what comes next to it."""
    j = int(np.abs(np.diff(p.offsets) - n).argmin())
    a, b = p.offsets[j : j + 2]
    return Problem(np.ascontiguousarray(p.p4[:, a:b]), np.array([0, b - a]))


def doubled(inputs: Inputs) -> Inputs:
    return inputs._replace(x=inputs.x.double(), points=inputs.points.double(), p4=inputs.p4.double())


def loss_of(model: torch.nn.Module, inputs: Inputs) -> float:
    """One step without the optimiser; labels alternate, as in the peer."""
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(inputs), torch.arange(len(inputs.offsets_host) - 1) % 2)
    loss.backward()
    return float(loss.detach())


def padded(inputs: Inputs) -> dict[str, np.ndarray]:
    """points, features, p4 (J, C, P) and mask (J, 1, P), zeros behind the constituents; P the longest jet, 17 at least.

    weaver's ParticleNet looks for 16 neighbours and the point itself.
    """
    counts = np.diff(inputs.offsets_host)
    mask = np.arange(max(17, inputs.max_n)) < counts[:, None]
    found: dict[str, np.ndarray] = {"mask": mask[:, None]}
    for name, rows in (("points", inputs.points), ("features", inputs.x), ("p4", inputs.p4.T)):
        array = np.zeros((*mask.shape, rows.shape[1]), np.float32)
        array[mask] = rows.numpy()
        found[name] = np.ascontiguousarray(array.swapaxes(1, 2))
    return found


def weaver(
    child: Child | None, model: torch.nn.Module, inputs: Inputs, folder: Path, **options: Any
) -> tuple[Callable[[], float] | None, int]:
    """weaver's network with the weights of `model` on the padded inputs, for `compare`."""
    jets = len(inputs.offsets_host) - 1
    if child is None:
        return None, jets
    torch.save(model.state_dict(), folder / "state.pt")
    return child.prepare("weaver_network", padded(inputs), state=str(folder / "state.pt"), **options), jets


def check(found: torch.Tensor, expected: np.ndarray, most: float, median: float) -> None:
    """Logits of float32 against a peer's: rounding decides about ln m^2 of massless pairs and about near neighbours."""
    difference = np.abs(found.detach().numpy().astype(np.float64) - expected)
    assert difference.max() < most and np.median(difference) < median, f"off by {difference.max()}: not timed"
