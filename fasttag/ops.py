"""The operations on Jets: unpacks them and calls the kernels, whose documentation it carries."""

from __future__ import annotations

import functools
from typing import Any

from fasttag_kernels.kinematics import Kinematics
from fasttag_kernels.kinematics import kinematics as _kinematics
from fasttag_kernels.pad import pad
from fasttag_kernels.pixelate import CHANNELS
from fasttag_kernels.pixelate import pixelate as _pixelate
from fasttag_kernels.segment import segment

from . import interop
from .jets import Jets

__all__ = ["Kinematics", "jet_p4", "kinematics", "pad", "pixelate", "segment"]


@functools.wraps(_kinematics)
def kinematics(jets: Any, *, threads: int | None = None) -> Kinematics:
    return _kinematics(jets.p4 if isinstance(jets, Jets) else jets, threads=threads)


@functools.wraps(_pixelate)
def pixelate(jets: Any, *arrays: Any, **options: Any) -> Any:
    if not isinstance(jets, Jets):
        return _pixelate(jets, *arrays, **options)
    jets = jets.compact()
    k = _kinematics(jets.p4, threads=options.get("threads"))
    if any(CHANNELS.get(name, (None, False))[0] is not None for name in options.get("channels", ())):
        if "kind" not in jets.columns:
            raise ValueError(
                f"pixelate: jets must have a column kind for channels {list(options['channels'])}, "
                f"got columns {list(jets.columns)}; add it with jets.with_columns(kind=...)"
            )
        options["kind"] = jets.columns["kind"]
    return _pixelate(k.pt, k.eta, k.phi, jets.offsets, **options)


def jet_p4(jets: Jets, *, threads: int | None = None) -> Any:
    """Four-vector of each jet, the sum of its constituents: (4, J), rows px, py, pz, E in GeV, in the dtype of p4.

    Sums are accumulated in float64. Differentiable in p4 (torch).
    """
    rows = [segment(row, jets.offsets, threads=threads) for row in jets.p4]
    return interop.require(jets.library).stack(rows)
