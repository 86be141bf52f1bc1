"""What every tagger shares: which class is which, and jets in as well as prepared inputs."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from .. import features
from ..features import Inputs
from ..jets import Jets

COLUMNS = {"kin": 7, "kinpid": 13, "full": 17}  # of x, by recipe
BatchStatistics = Literal["real"] | tuple[Literal["padded"], int]


class Tagger(nn.Module):
    """Base of the taggers: `model(jets)` is `model.forward(model.recipe(jets))`, logits of shape (J, classes).

    classes : names of the classes in the order of the logits; class index = label.
    signal : index of the class that `models.score` gives the probability of.
    """

    least_classes = 2
    recipe: Any  # from features, of the class or of the model
    name: str  # set by models.build
    config: dict[str, Any]

    def __init__(self, classes: Sequence[str] = ("QCD", "top"), signal: int = 1) -> None:
        super().__init__()
        self.classes, self.signal = self._checked(classes, signal)

    def _checked(self, classes: Sequence[str], signal: int) -> tuple[tuple[str, ...], int]:
        """Both as the tagger keeps them."""
        name = type(self).__name__
        if isinstance(classes, str) or not isinstance(classes, Sequence):
            raise TypeError(f"{name}: classes must be a sequence of names, got {classes!r}; list one per logit")
        if not all(isinstance(one, str) for one in classes):
            raise TypeError(f"{name}: classes must be strings, got {list(classes)}; name each logit")
        if len(classes) < self.least_classes or len({*classes}) < len(classes):
            raise ValueError(
                f"{name}: classes must be {self.least_classes} or more different names, got {list(classes)}; list one "
                "per logit"
            )
        if isinstance(signal, bool) or not isinstance(signal, numbers.Integral):
            raise TypeError(f"{name}: signal must be an integer, got {signal!r}; give the index of a class")
        if not 0 <= signal < len(classes):
            raise ValueError(f"{name}: signal must index classes {tuple(classes)}, got {signal}; fix it")
        return tuple(classes), int(signal)

    def __call__(self, jets: Any, **more: Any) -> Any:
        """Logits (J, classes) of Jets of any library (moved to the model's device and dtype), or of prepared inputs."""
        weight = next(self.parameters())
        if isinstance(jets, Jets):
            if self.recipe is None:
                raise TypeError(
                    f"{type(self).__name__}: jets must be Inputs, as inputs is a number of columns, got Jets; name a "
                    "recipe or prepare the inputs"
                )
            jets = jets.to(str(weight.device), library="torch").astype(str(weight.dtype).removeprefix("torch."))
            jets = self.recipe(jets)
        elif isinstance(jets, Inputs):
            found = jets.x.dtype if isinstance(jets.x, torch.Tensor) else type(jets.x).__name__
            if found != weight.dtype:
                raise TypeError(
                    f"{type(self).__name__}: x of Inputs must be a torch tensor of the weights' {weight.dtype}, got "
                    f"{found}; make it by jets.to(library='torch').astype(...), or convert the model"
                )
        return super().__call__(jets, **more)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them; He-uniform weights, zero biases (as in EnergyFlow)."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        linear = nn.Linear(a, b)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU(inplace=True)] if i < len(widths) - 2 else [linear]
    return nn.Sequential(*layers)


def head(width: int, hidden: Sequence[tuple[int, float]], classes: int) -> nn.Sequential:
    """Linear, ReLU, dropout for each (width, dropout), then a linear layer: what weaver calls fc."""
    layers: list[nn.Module] = []
    for out, rate in hidden:
        layers.append(nn.Sequential(nn.Linear(width, out), nn.ReLU(), nn.Dropout(rate)))
        width = out
    return nn.Sequential(*layers, nn.Linear(width, classes))


def recipe_named(tagger: str, inputs: str | int) -> Any:
    """The recipe of that name for features of constituents; none for a number of columns of the caller's own."""
    if isinstance(inputs, int) and inputs > 0:
        return None
    if inputs not in COLUMNS:
        raise ValueError(
            f"{tagger}: inputs must be one of {', '.join(COLUMNS)} or a number of columns, got {inputs!r}; see "
            "fasttag.features"
        )
    return getattr(features, str(inputs))


def check_option(tagger: str, argument: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        names = " or ".join(f'"{name}"' for name in allowed)
        raise ValueError(f'{tagger}: {argument} must be {names}, got {value!r}; "{allowed[0]}" is usual')


def check_bn_stats(tagger: str, bn_stats: Any) -> None:
    padded = isinstance(bn_stats, (tuple, list)) and len(bn_stats) == 2 and bn_stats[0] == "padded"
    length = bn_stats[1] if padded else 1
    if (bn_stats != "real" and not padded) or not isinstance(length, numbers.Integral) or length < 1:
        raise ValueError(
            f'{tagger}: bn_stats must be "real" or ("padded", P) with P of 1 or more, got {bn_stats!r}; "real" is usual'
        )


def blocks_of_jets(inputs: Inputs, constituents: int) -> Iterator[tuple[Inputs, slice]]:
    """Runs of about that many constituents, and where their pairs are; one run where all are in it."""
    host = inputs.offsets_host
    if host[-1] <= constituents:
        yield inputs, slice(0, int((np.diff(host) ** 2).sum()))
        return
    pairs = np.concatenate([[0], np.cumsum(np.diff(host) ** 2)])
    first, jets = 0, len(host) - 1
    while first < jets:
        last = max(first + 1, int(np.searchsorted(host, host[first] + constituents, side="right")) - 1)
        a, b = int(host[first]), int(host[last])
        offsets = inputs.offsets[first : last + 1] - a
        part = inputs._replace(
            x=inputs.x[a:b],
            points=inputs.points[a:b],
            p4=inputs.p4[:, a:b],
            offsets=offsets,
            offsets_host=host[first : last + 1] - a,
            max_n=int(np.diff(host[first : last + 1]).max()),
        )
        yield part, slice(int(pairs[first]), int(pairs[last]))
        first = last


def batch_norm(
    norm: nn.BatchNorm1d, x: torch.Tensor, jets: int, bn_stats: BatchStatistics, frozen: bool
) -> torch.Tensor:
    """Batch normalisation of rows (N, C); statistics of these rows, or of `jets` times P rows, the others being 0.

    Running ones if `frozen`, and where the user has put `norm` into evaluation mode.
    """
    stored: Any = norm
    if frozen or not norm.training:  # not by torch's function, which wakes all threads for fifty rows
        mean, var = stored.running_mean, stored.running_var
    else:
        count = len(x) if bn_stats == "real" else jets * bn_stats[1]
        if count < len(x):
            raise ValueError(
                f"batch_norm: bn_stats must be of a P that jets fit in, got {bn_stats} for {jets} jets of {len(x)} "
                'constituents; raise P, or take "real"'
            )
        if count == 0:  # nothing to learn from
            return x * norm.weight + norm.bias
        mean = x.sum(0) / count
        var = ((x - mean).square().sum(0) + (count - len(x)) * mean.square()) / count
        update_running([norm], torch.stack([mean, var]).detach(), count)
    return (x - mean) * (norm.weight / (var + norm.eps).sqrt()) + norm.bias


def update_running(norms: Sequence[Any], moments: torch.Tensor, count: int) -> None:
    """Running statistics from the mean and variance (2, channels) that a batch of `count` had; as they are for 0."""
    if count == 0:
        return
    unbiased = count / max(count - 1, 1)
    for norm, (mean, var) in zip(norms, moments.split([norm.num_features for norm in norms], 1)):
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_((unbiased * var).to(norm.running_var.dtype), norm.momentum)
        norm.num_batches_tracked += 1
