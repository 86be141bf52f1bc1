"""ParticleNet-Lite and a small Particle Transformer, trained with weaver-core's modules and with ours.

    python benchmarks/train_beside_weaver.py TRAIN TEST [--jets 15000] [--epochs 2] [--seeds 3] [--out FILE.json]

Both get the same initial weights and padded batches, float32, no dropout, no trimming, one thread; ours is
`fasttag.compat.weaver`. First 20 steps as in weaver's recipe (RAdam, learning rate 1e-3), whose losses must agree
within 1e-3, or within twice what weaver's differ from their own in float64, where both are compared as well; then, from
the same weights again, a short training (AdamW, one cycle up to 2e-3). TRAIN and TEST are files that `fasttag.read`
reads. Needs .venv-peers (see README.md), where both run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BATCH, STEPS, BOUND = 256, 20, 1e-3
NETWORKS: dict[str, dict[str, Any]] = {
    "ParticleNet": {
        "input_dims": 7,
        "num_classes": 2,
        "conv_params": [(7, (32, 32, 32)), (7, (64, 64, 64))],
        "fc_params": [(128, 0.0)],
        "use_fusion": False,
        "trim": False,
    },
    "ParticleTransformer": {
        "input_dim": 7,
        "num_classes": 2,
        "use_pre_activation_pair": False,
        "embed_dims": (64, 128, 64),
        "pair_embed_dims": (16, 16),
        "num_heads": 4,
        "num_layers": 2,
        "num_cls_layers": 1,
        "block_params": {"dropout": 0.0, "attn_dropout": 0.0, "activation_dropout": 0.0},
        "trim": False,
    },
}


def prepare(path: str, jets: int | None, target: Path) -> None:
    """Inputs without padding, for the process that trains."""
    import fasttag

    read = fasttag.read(path, stop=jets)
    inputs = fasttag.features.kin(read)
    arrays = {"x": inputs.x, "points": inputs.points, "p4": inputs.p4.T, "offsets": inputs.offsets}
    np.savez(target, **arrays, label=read.labels["label"])


def batch(data: dict[str, np.ndarray], which: np.ndarray) -> tuple:
    """Padded tensors (B, C, P), the mask (B, 1, P) and labels of some jets, P the longest or 17."""
    import torch

    offsets = data["offsets"]
    counts = np.diff(offsets)[which]
    mask = np.arange(max(17, counts.max())) < counts[:, None]
    rows = np.concatenate([np.arange(offsets[j], offsets[j + 1]) for j in which])
    padded = []
    for name in ("points", "x", "p4"):
        array = np.zeros((*mask.shape, data[name].shape[1]), np.float32)
        array[mask] = data[name][rows]
        padded.append(torch.from_numpy(np.ascontiguousarray(array.swapaxes(1, 2))))
    return *padded, torch.from_numpy(mask[:, None]), torch.from_numpy(data["label"][which].astype(np.int64))


def build(network: str, module: Any, state: Any) -> tuple[Any, Any]:
    """A model with these weights, and its logits of padded inputs."""
    model = getattr(module, network)(**NETWORKS[network])
    model.load_state_dict(state)
    return model, {
        "ParticleNet": lambda points, x, p4, mask: model(points, x, mask=mask),
        "ParticleTransformer": lambda points, x, p4, mask: model(x, v=p4, mask=mask),
    }[network]


def first_losses(network: str, module: Any, state: Any, data: Any, seed: int, dtype: str = "float32") -> np.ndarray:
    """Those of 20 steps."""
    import torch

    model, logits = build(network, module, state)
    model.to(getattr(torch, dtype))
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-3, betas=(0.95, 0.999), eps=1e-5)
    order, losses = np.random.default_rng(seed).permutation(len(data["offsets"]) - 1), []
    for a in range(0, STEPS * BATCH, BATCH):
        *padded, label = batch(data, order[a : a + BATCH])
        padded = [x.to(getattr(torch, dtype)) if x.is_floating_point() else x for x in padded]
        loss = torch.nn.functional.cross_entropy(logits(*padded), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def train(network: str, module: Any, state: Any, data: Any, test: Any, seed: int, epochs: int) -> dict[str, Any]:
    """Scores of the test jets and jets per second of training."""
    import torch

    model, logits = build(network, module, state)
    jets = len(data["offsets"]) - 1
    steps = epochs * (jets // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    begin = time.perf_counter()
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(jets)
        for a in range(0, jets - BATCH + 1, BATCH):
            *padded, label = batch(data, order[a : a + BATCH])
            loss = torch.nn.functional.cross_entropy(logits(*padded), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    rate = steps * BATCH / (time.perf_counter() - begin)
    model.eval()
    scores = []
    with torch.no_grad():
        for a in range(0, len(test["offsets"]) - 1, BATCH):
            *padded, _ = batch(test, np.arange(a, min(a + BATCH, len(test["offsets"]) - 1)))
            scores.append(logits(*padded).softmax(1)[:, 1])
    return {"scores": torch.cat(scores).numpy(), "jets_per_s": rate}


def child(folder: Path, epochs: int, seeds: int) -> None:
    """Everything that needs weaver-core and torch; one line of JSON per network and seed."""
    import torch
    import weaver.nn.model.ParticleNet
    import weaver.nn.model.ParticleTransformer

    from fasttag import metrics
    from fasttag.compat import weaver as ours

    torch.set_num_threads(1)
    data, test = (dict(np.load(folder / f"{name}.npz")) for name in ("train", "test"))
    for network in NETWORKS:
        theirs = getattr(weaver.nn.model, network)
        for seed in range(seeds):
            torch.manual_seed(seed)
            state = getattr(theirs, network)(**NETWORKS[network]).state_dict()
            first, expected = (first_losses(network, module, state, data, seed) for module in (ours, theirs))
            row: dict[str, Any] = {"network": network, "seed": seed}
            row["parameters"] = sum(
                t.numel() for k, t in state.items() if not k.endswith(("_mean", "_var", "_tracked"))
            )
            row["largest_difference"] = float(np.abs(first / expected - 1).max())
            first64, exact = (first_losses(network, module, state, data, seed, "float64") for module in (ours, theirs))
            row["largest_difference_float64"] = float(np.abs(first64 / exact - 1).max())
            row["of_weaver_with_float64"] = float(np.abs(expected / exact - 1).max())
            for name, module in (("weaver", theirs), ("fasttag", ours)) if epochs else ():
                found = train(network, module, state, data, test, seed, epochs)
                rejection = metrics.background_rejection(found["scores"], test["label"], 0.3)
                row[name] = {
                    "auc": metrics.auc(found["scores"], test["label"]),
                    "accuracy": metrics.accuracy(found["scores"], test["label"]),
                    "rejection_0.3": [rejection.value, rejection.error],
                    "jets_per_s": found["jets_per_s"],
                }
            print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--jets", type=int, default=15_000)
    parser.add_argument("--epochs", type=int, default=2, help="0: the first steps only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(args.train, args.jets, folder / "train.npz")
        prepare(args.test, None, folder / "test.npz")
        command = [ROOT / ".venv-peers/bin/python", __file__, "--child", folder, str(args.epochs), str(args.seeds)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
        rows = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            for line in process.stdout or ():
                if line.startswith("{"):
                    rows.append(json.loads(line))
                    print(line, end="", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"jets": args.jets, "epochs": args.epochs, "rows": rows}, indent=1) + "\n")
    if process.returncode or any(
        row["largest_difference"] > max(BOUND, 2 * row["of_weaver_with_float64"]) for row in rows
    ):
        sys.exit(f"losses of the first {STEPS} steps differ by too much, or training failed")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
