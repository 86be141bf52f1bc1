"""torch_cluster 1.6 and torch_geometric.nn.pool: change `from torch_cluster import knn_graph` into
`from fasttag.compat.torch_cluster import knn_graph`.

Tensors are on the CPU, float32 or float64, k is 32 at most. Different from torch_cluster on purpose: neighbours at the
same distance are ordered by index, where a search tree leaves them in any order, and without `loop` a point is left out
by its index, where torch_cluster looks for k + 1 and drops the point if it finds it among its duplicates.
"""

from __future__ import annotations

from ..interop import require

require("torch")  # an ImportError that names the extra

import torch  # noqa: E402

from ._neighbours import nearest  # noqa: E402

__all__ = ["knn", "knn_graph"]


def knn_graph(
    x: torch.Tensor,
    k: int,
    batch: torch.Tensor | None = None,
    loop: bool = False,
    flow: str = "source_to_target",
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Edges (2, E) int64 between each point and its k nearest neighbours, nearest first, points in order.

    x : (N, F) or (N,). batch : (N,) int64, sorted: neighbours are of the same example. A point with fewer than k others
    has fewer edges. loop : a point is a neighbour of itself, as one of the k.
    flow : "source_to_target" puts neighbours into row 0 and points into row 1, "target_to_source" the other way round.
    num_workers, batch_size : accepted, not needed; `fasttag.set_threads` sets threads.

    Raises NotImplementedError for cosine distances, ValueError for an unsorted batch or another flow.
    """
    if flow not in ("source_to_target", "target_to_source"):
        raise ValueError(f'knn_graph: flow must be "source_to_target" or "target_to_source", got {flow!r}; choose one')
    edges = _edges("knn_graph", x, k, batch, loop, cosine)
    return edges.flip(0) if flow == "source_to_target" else edges


def knn(
    x: torch.Tensor,
    y: torch.Tensor,
    k: int,
    batch_x: torch.Tensor | None = None,
    batch_y: torch.Tensor | None = None,
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> torch.Tensor:
    """For each point of y (row 0) its k nearest points of x (row 1), itself included, nearest first: (2, E) int64.

    y has to be x and batch_y batch_x, or tensors on the same memory: NotImplementedError otherwise, since the kernel
    searches a jet for the neighbours of its own points. See `knn_graph` for the rest.
    """
    if not (_same(x, y) and _same(batch_x, batch_y)):
        raise NotImplementedError(
            "knn: y must be x and batch_y must be batch_x, got other tensors; the kernel finds neighbours of a jet's "
            "own points only: keep torch_cluster for other queries"
        )
    return _edges("knn", x, k, batch_x, True, cosine)


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.data_ptr() == b.data_ptr() and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def _edges(op: str, x: torch.Tensor, k: int, batch: torch.Tensor | None, loop: bool, cosine: bool) -> torch.Tensor:
    """Points in row 0, neighbours in row 1."""
    if cosine:
        raise NotImplementedError(
            f"{op}: cosine must be False, there are only Euclidean distances; normalise x instead"
        )
    x = x.detach().unsqueeze(1) if x.ndim == 1 else x.detach()
    if batch is None:
        offsets = torch.tensor([0, len(x)])
    elif tuple(batch.shape) != (len(x),) or batch.dtype != torch.int64:
        raise ValueError(
            f"{op}: batch must be int64 of shape ({len(x)},), got {batch.dtype} of shape {tuple(batch.shape)}; "
            "give one number per point"
        )
    elif (batch.diff() < 0).any():
        raise ValueError(f"{op}: batch must be sorted, got a number below the one before it; sort the points by it")
    else:
        counts = batch.unique_consecutive(return_counts=True)[1]
        offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    neighbours = nearest(x, k, offsets, itself=loop)
    start = offsets[:-1].repeat_interleave(offsets.diff()).unsqueeze(1)
    points = torch.arange(len(x)).unsqueeze(1).expand_as(neighbours)
    return torch.stack((points, neighbours + start))[:, neighbours >= 0]
