"""What the kernels are timed against, beyond `fasttag._baselines`.

Other people's packages cannot share our environment: they run in one child process of `.venv-peers` per run. This file
is both ends. The child does a task once per request and times itself; arrays travel as files.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PYTHON = Path(__file__).resolve().parent.parent / ".venv-peers" / "bin" / "python"


def pixelate_per_jet(pt: Any, eta: Any, phi: Any, offsets: Any, *, npix: int = 40, half_width: float = 0.8) -> Any:
    """The usual NumPy way, one jet at a time: centre, rotate, flip, np.histogram2d, normalise. phi must not wrap."""
    images = np.empty((len(offsets) - 1, npix, npix), np.float32)
    edges = np.linspace(-half_width, half_width, npix + 1)
    for image, a, b in zip(images, offsets[:-1], offsets[1:]):
        w, x, y = pt[a:b].astype(np.float64), eta[a:b].astype(np.float64), phi[a:b].astype(np.float64)
        x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
        angle = 0.5 * np.arctan2(2 * (w * x * y).sum(), (w * x * x).sum() - (w * y * y).sum())
        x, y = x * np.sin(angle) - y * np.cos(angle), x * np.cos(angle) + y * np.sin(angle)
        x = -x if w[x < 0].sum() > w[x > 0].sum() else x
        y = -y if w[y < 0].sum() > w[y > 0].sum() else y
        counts, _, _ = np.histogram2d(y, x, bins=(edges, edges), weights=w)
        image[:] = counts / counts.sum()
    return images


def _energyflow_pixelate(folder: Path, npix: int, width: float) -> Callable[[], Any]:
    from energyflow.utils import pixelate

    offsets = np.load(folder / "offsets.npy")
    table = np.stack([np.load(folder / f"{name}.npy") for name in ("pt", "eta", "phi")], 1).astype(np.float64)
    jets = np.split(table, offsets[1:-1])
    return lambda: (np.array([pixelate(jet, npix=npix, img_width=width) for jet in jets])[..., 0],)


def _pandas_write(folder: Path, path: str) -> Callable[[], Any]:
    """The reference layout: 200 slots of E, PX, PY, PZ, the true top, ttv, is_signal_new; blosc."""
    import pandas

    p4 = np.load(folder / "padded.npy")
    names = [f"{q}_{i}" for i in range(200) for q in ("E", "PX", "PY", "PZ")]
    frame = pandas.DataFrame(p4[:, :, [3, 0, 1, 2]].reshape(len(p4), 800), columns=names)
    labels = {f"truth{q}": np.float32(0) for q in ("E", "PX", "PY", "PZ")} | {"ttv": 0, "is_signal_new": 0}
    frame = pandas.concat([frame, pandas.DataFrame(labels, index=frame.index)], axis=1)
    frame["is_signal_new"] = np.arange(len(frame)) % 2
    return lambda: frame.to_hdf(path, key="table", mode="w", format="table", complib="blosc", complevel=9)


def _pandas_read(folder: Path, path: str) -> Callable[[], Any]:
    """pandas.read_hdf and what its users do next: (4, N) rows px, py, pz, E without the padding, offsets, labels."""
    import pandas

    def run() -> tuple[np.ndarray, ...]:
        frame = pandas.read_hdf(path, key="table")
        slots = frame.iloc[:, :800].to_numpy().reshape(len(frame), 200, 4)
        valid = slots[:, :, 0] > 0
        offsets = np.concatenate([[0], np.cumsum(valid.sum(1))])
        return np.ascontiguousarray(slots[valid].T[[1, 2, 3, 0]]), offsets, frame["is_signal_new"].to_numpy()

    return run


def _weaver_knn(folder: Path, k: int, length: int | None) -> Callable[[], Any]:
    """Points x (N, C) jet by jet, or padded to `length` with points at 1e9 as ParticleNet does it; one thread."""
    import torch
    from weaver.nn.model.ParticleNet import knn

    torch.set_num_threads(1)
    clouds = [torch.from_numpy(cloud.T.copy()) for cloud in np.split(np.load(folder / "x.npy"), _inner(folder))]
    if length is None:
        return lambda: tuple(knn(cloud[None], min(k, cloud.shape[1] - 1))[0] for cloud in clouds)
    padded = torch.full((len(clouds), len(clouds[0]), length), 1e9)
    for row, cloud in zip(padded, clouds):
        row[:, : cloud.shape[1]] = cloud
    return lambda: tuple(knn(padded, k))


def _scipy_knn(folder: Path, k: int) -> Callable[[], Any]:
    """A tree per jet; the first neighbour of each is itself or a point in the same place."""
    from scipy.spatial import cKDTree

    clouds = np.split(np.load(folder / "x.npy"), _inner(folder))
    return lambda: tuple(cKDTree(cloud).query(cloud, k=min(k + 1, len(cloud)))[1][:, 1:] for cloud in clouds)


def _weaver(folder: Path, function: str, fresh: bool = True) -> Callable[[], Any]:
    """weaver's function on what its networks and loaders give it; one thread. fresh: padding gets new memory."""
    import torch
    from weaver.nn.model import ParticleNet, ParticleTransformer
    from weaver.utils.data import tools

    torch.set_num_threads(1)
    tensor = lambda name: torch.from_numpy(np.load(folder / f"{name}.npy"))
    if function == "pairwise_lv_fts_pp":
        x = tensor("x")
        return lambda: (ParticleTransformer.pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2)),)
    if function == "knn":
        x = tensor("x")
        return lambda: (ParticleNet.knn(x, 16),)
    if function == "get_graph_feature":
        x, index = tensor("x"), tensor("index")
        return lambda: (ParticleNet.get_graph_feature(x, 16, index),)
    content, starts, offsets, center, scale, low, high = (
        np.load(folder / f"{name}.npy") for name in ("content", "starts", "offsets", "center", "scale", "low", "high")
    )
    settings = content, starts, offsets, center, scale, low, high, np.ones(len(starts), bool)
    pads = () if function == "_batched_fused_repeat_pad" else (np.zeros(len(starts), np.float32),)

    shape = len(offsets) - 1, len(starts), 128
    kept = np.zeros(shape, np.float32)

    def pad() -> tuple[np.ndarray]:
        out = np.zeros(shape, np.float32) if fresh else kept
        getattr(tools, function)(*settings, *pads, out)
        return (out,)

    return pad


def _energyflow_coordinates(folder: Path) -> Callable[[], Any]:
    from energyflow.utils import ptyphims_from_p4s

    p4s = np.load(folder / "p4s.npy")
    return lambda: (ptyphims_from_p4s(p4s),)


def _inner(folder: Path) -> np.ndarray:
    return np.load(folder / "offsets.npy")[1:-1]


def _dcor(folder: Path) -> Callable[[], Any]:
    import dcor

    x, y = (np.load(folder / f"{name}.npy").astype(np.float64) for name in "xy")
    dcor.distance_correlation_sqr(x, y)  # compiles
    return lambda: (dcor.distance_correlation_sqr(x, y),)


def _weaver_pairs(folder: Path, length: int | None, batch: int = 1, gradient: bool = False) -> Callable[[], Any]:
    """pairwise_lv_fts_pp of all n^2 pairs, jet by jet or padded to `length` in batches.

    With `gradient` that of the sum over the pairs i > j by p4: of a pair i = j the square root of 0 makes it NaN.
    """
    import torch
    from weaver.nn.model.ParticleTransformer import pairwise_lv_fts_pp

    torch.set_num_threads(1)
    jets = np.split(np.load(folder / "p4.npy"), np.load(folder / "offsets.npy")[1:-1], axis=1)
    if length is None:
        blocks = [torch.from_numpy(jet)[None].requires_grad_(gradient) for jet in jets]
    else:
        padded = torch.zeros(len(jets), 4, length)
        for row, jet in zip(padded, map(torch.from_numpy, jets)):
            row[:, : jet.shape[1]] = jet
        blocks = list(padded.split(batch))

    def gradients() -> tuple:
        different = [torch.tril_indices(x.shape[2], x.shape[2], -1) for x in blocks]
        sums = [pairwise_lv_fts_pp(x[:, :, i], x[:, :, j]).sum() for x, (i, j) in zip(blocks, different)]
        return torch.autograd.grad(sums, blocks)

    return gradients if gradient else lambda: tuple(pairwise_lv_fts_pp(x[..., None], x[:, :, None]) for x in blocks)


def _weaver_pair_embed(folder: Path, weights: int, train: bool) -> Callable[[], Any]:
    """PairEmbed on real pairs, jets padded to the longest; train: batch statistics and the gradients of sum y^2."""
    import torch
    from weaver.nn.model.ParticleTransformer import PairEmbed

    torch.set_num_threads(1)
    network = [torch.from_numpy(np.load(folder / f"weights{i}.npy")) for i in range(weights)]
    running = [torch.from_numpy(np.load(folder / f"running{i}.npy")) for i in range(weights // 2 + 1)]
    dims = [len(matrix) for matrix in network[2::4]]
    model = PairEmbed(4, 0, dims, use_pre_activation_pair=False).to(network[0].dtype).train(train)
    parameters = list(model.embed.parameters())
    buffers = [b for b in model.embed.buffers() if b.ndim]
    with torch.no_grad():
        for there, value in zip((*parameters, *buffers), (*network, *running), strict=True):
            there.copy_(value.view_as(there))
    jets = np.split(np.load(folder / "p4.npy"), np.load(folder / "offsets.npy")[1:-1], axis=1)
    length = max(jet.shape[1] for jet in jets)
    x, mask = torch.zeros(len(jets), 4, length, dtype=network[0].dtype), torch.zeros(len(jets), 1, length)
    for row, real, jet in zip(x, mask, jets):
        row[:, : jet.shape[1]], real[:, : jet.shape[1]] = torch.from_numpy(jet), 1

    def run() -> tuple:
        with torch.no_grad():
            return (model(x, mask=mask),)

    def step() -> tuple:
        return torch.autograd.grad(model(x, mask=mask).square().sum(), parameters)

    return step if train else run


def _padded(rows: Any, offsets: np.ndarray, least: int) -> Any:
    """(N, C) -> (J, C, P) with zeros, P the longest jet or `least`, and which slots are taken (J, 1, P)."""
    import torch

    counts = np.diff(offsets)
    padded = torch.zeros(len(counts), rows.shape[1], max(least, counts.max()))
    valid = torch.zeros(len(counts), 1, padded.shape[2], dtype=torch.bool)
    for j, part in enumerate(np.split(rows, offsets[1:-1])):
        padded[j, :, : len(part)] = torch.from_numpy(part.T.copy())
        valid[j, :, : len(part)] = True
    return padded, valid


def _state(folder: Path, names: list[str]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.load(folder / f"{name}.npy")) for name in names}


def _weaver_edge_conv(
    folder: Path, names: list[str], k: int, columns: int, widths: list[int], gradient: bool
) -> Callable[[], Any]:
    """EdgeConvBlock with its search for neighbours, on jets padded to the longest; one thread."""
    import torch
    from weaver.nn.model.ParticleNet import EdgeConvBlock

    torch.set_num_threads(1)
    block = EdgeConvBlock(k, columns, widths).train(gradient)
    block.load_state_dict(_state(folder, names))
    x, valid = _padded(np.load(folder / "x.npy"), np.load(folder / "offsets.npy"), k + 1)
    points = x.masked_fill(~valid, 1e9)
    x.requires_grad_(gradient)

    def run() -> tuple:
        with torch.set_grad_enabled(gradient):
            out = block(points, x)
        if gradient:
            total = (out * valid).sum()
            return tuple(g.flatten(1) if g.ndim > 1 else g for g in torch.autograd.grad(total, block.parameters()))
        return (out,)

    return run


def _weaver_network(
    folder: Path, network: str, config: dict[str, Any], state: str, threads: int, training: bool
) -> Callable[[], Any]:
    """Logits of one padded batch, in evaluation; or the loss of a step without optimiser and its memory."""
    import torch
    from weaver.nn.model import ParticleNet, ParticleTransformer

    torch.set_num_threads(threads)
    points, features, p4, mask = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("points", "features", "p4", "mask")
    )
    model = getattr({"ParticleNet": ParticleNet, "ParticleTransformer": ParticleTransformer}[network], network)(
        **config
    )
    model.load_state_dict(torch.load(state, weights_only=True))
    run = {
        "ParticleNet": lambda: model(points, features, mask=mask),
        "ParticleTransformer": lambda: model(features, v=p4, mask=mask),
    }[network]
    model.eval()
    with torch.inference_mode():
        for _ in range(6):  # its trimmer does nothing in the first five calls
            run()
    model.train(training)
    labels = torch.arange(len(mask)) % 2

    def logits() -> tuple[Any]:
        with torch.inference_mode():
            return (run(),)

    def step() -> tuple[Any]:
        with Peak() as peak:
            loss = torch.nn.functional.cross_entropy(run(), labels)
            loss.backward()
        model.zero_grad()
        return (np.array([loss.item(), peak.bytes]),)

    return step if training else logits


class Peak:
    """How much more memory this process had inside, at most, than at the beginning (Linux)."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = self._status("VmRSS")
        return self

    def __exit__(self, *_: Any) -> None:
        self.bytes = self._status("VmHWM") - self._before

    def _status(self, name: str) -> int:
        return 1024 * int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


TASKS = {
    "energyflow": _energyflow_pixelate,
    "pandas_write": _pandas_write,
    "pandas": _pandas_read,
    "weaver_knn": _weaver_knn,
    "scipy_knn": _scipy_knn,
    "dcor": _dcor,
    "weaver_pairs": _weaver_pairs,
    "weaver_pair_embed": _weaver_pair_embed,
    "weaver_edge_conv": _weaver_edge_conv,
    "weaver": _weaver,
    "energyflow_coordinates": _energyflow_coordinates,
    "weaver_network": _weaver_network,
}


class Child:
    """The other end, for as long as the benchmarks run. `start` gives None where .venv-peers is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [PYTHON, __file__, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @classmethod
    def start(cls, folder: Path) -> Child | None:
        return cls(folder) if PYTHON.exists() else None

    def version(self, package: str) -> str:
        return self._ask(version=package)

    def prepare(self, task: str, arrays: dict[str, np.ndarray], **options: Any) -> Callable[[], float]:
        """Load a task's package and inputs, untimed; gives back its `round`, for a benchmark with several tasks."""
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)
        number = self._ask(task=task, options=options)
        return lambda: self._ask(round=number)

    def round(self) -> float:
        """Do the task prepared last once: seconds, by the child's clock."""
        return self._ask(round=-1)

    def result(self) -> list[np.ndarray]:
        """The arrays that the last round gave."""
        self._ask(save=True)
        with np.load(self.folder / "result.npz") as found:
            return list(found.values())

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peers' process ended with status {self._process.wait()}, see its messages above")
        return json.loads(answer)


def _serve(folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever packages print goes to stderr
    runs: list[Callable[[], Any]] = []
    result: Any = ()
    for line in sys.stdin:
        request, answer = json.loads(line), None
        if "task" in request:
            answer = len(runs)
            runs.append(TASKS[request["task"]](folder, **request["options"]))
        elif "version" in request:
            answer = importlib.metadata.version(request["version"])
        elif "save" in request:
            np.savez(folder / "result.npz", *result)
        else:
            begin = time.perf_counter()
            result = runs[request["round"]]()
            answer = time.perf_counter() - begin
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
