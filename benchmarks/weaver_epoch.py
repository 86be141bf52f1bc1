"""One epoch of the stock `weaver` command, with weaver-core's networks and with ours, loading included.

    python benchmarks/weaver_epoch.py TRAIN VAL [--jets 2048] [--rounds 3] [--network part|particlenet] [--profile]

TRAIN and VAL are files that `fasttag.read` reads. They become Parquet of constituents, at most 128, as weaver users
have it; `weaver_top_kin.yaml` has the rest of the preprocessing, which weaver does. The two network files differ in one
line, an import. Needs .venv-peers (see README.md). Nothing here is fasttag's but that line.
"""

from __future__ import annotations

import argparse
import os
import pstats
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import awkward as ak
import numpy as np

import fasttag

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
CLASSES = {"part": "ParticleTransformer", "particlenet": "ParticleNet"}
# file and function of what is told apart in a profile, by cumulative time
PARTS = {
    "training": ("tools.py", "train_classification"),
    "validation": ("tools.py", "evaluate_classification"),
    "backward": ("_tensor.py", "backward"),
    "optimiser": ("lookahead.py", "step"),
    "norm of the gradient": ("clip_grad.py", "clip_grad_norm_"),
    "batches from the loader, validation's too": ("dataloader.py", "__next__"),
}
# seconds of processor time of this process: nobody else's, and none for waiting
PROFILED = """
import cProfile, sys, time
from weaver.train import main
profile = cProfile.Profile(time.process_time)
path = sys.argv.pop(1)
profile.runcall(main)
profile.dump_stats(path)
"""


def write(source: str, jets: int, path: Path) -> None:
    """Jagged columns of constituents and columns of jets, as in the converted top-tagging sample of weaver users."""
    read = fasttag.read(source, stop=jets)
    p4, valid = read.to_padded(128, truncate=True)
    p4, counts = np.ascontiguousarray(p4[valid].T), valid.sum(1)
    constituent, jet = fasttag.kinematics(p4), fasttag.kinematics(fasttag.jet_p4(read))
    of_jet = lambda a: np.repeat(a, counts)
    columns = dict(zip(("part_px", "part_py", "part_pz", "part_energy"), p4))
    columns["part_deta"] = (constituent.eta - of_jet(jet.eta)) * of_jet(np.where(jet.eta < 0, -1, 1)).astype("f4")
    columns["part_dphi"] = ((constituent.phi - of_jet(jet.phi) + np.pi) % (2 * np.pi) - np.pi).astype("f4")
    table: dict[str, Any] = {name: ak.unflatten(column, counts) for name, column in columns.items()}
    table |= {"jet_pt": jet.pt, "jet_eta": jet.eta, "jet_energy": fasttag.jet_p4(read)[3]}
    table["jet_isTop"] = read.labels["label"].astype("i4")
    ak.to_parquet(ak.Array(table), path, compression="LZ4")


def networks(kind: str, folder: Path) -> dict[str, Path]:
    """Our network file, and the same with weaver's import."""
    ours = (ROOT / "fasttag" / "compat" / f"weaver_{kind}.py").read_text()
    line = f"from fasttag.compat.weaver import {CLASSES[kind]}\n"
    assert line in ours
    theirs = ours.replace(line, f"from weaver.nn.model.{CLASSES[kind]} import {CLASSES[kind]}\n")
    found = {}
    for name, text in (("weaver", theirs), ("fasttag", ours)):
        (folder / name).mkdir()
        found[name] = folder / name / "network.py"
        found[name].write_text(text)
    return found


def weaver(network: Path, threads: int, *arguments: Any, profile: Path | None = None) -> dict[str, float]:
    """Runs the command; seconds, processor time of all its processes, and jets/s as weaver logs them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command: list[Any] = [PYTHON, *(["-c", PROFILED, profile] if profile else ["-m", "weaver.train"])]
    command += ["--gpus", "", "--data-config", ROOT / "benchmarks" / "weaver_top_kin.yaml", "-n", network]
    done = subprocess.run(
        [*map(str, command), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=network.parent,
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
        },
        check=False,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    log = done.stdout + done.stderr
    if done.returncode:
        sys.exit(log[-5000:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    speeds = [float(found) for found in re.findall(r"avg\. speed ([\d.]+) entries/s", log)]
    return {"wall": wall, "cpu": cpu} | dict(zip(("training jets/s", "validation jets/s"), speeds))


def shares(profile: Path) -> dict[str, float]:
    stats: Any = pstats.Stats(str(profile))
    found = {}
    for part, (file, function) in PARTS.items():
        found[part] = sum(
            times[3] for (where, _, name), times in stats.stats.items() if name == function and Path(where).name == file
        )
    inside = sum(seconds for part, seconds in found.items() if part not in ("training", "validation"))
    found["forward, loss and the rest of training"] = found["training"] - inside
    found["setting up"] = stats.total_tt - found["training"] - found["validation"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--jets", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", choices=CLASSES, default="part")
    parser.add_argument("--profile", action="store_true", help="one round under cProfile, and where its time goes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(args.train, args.jets, folder / "train.parquet")
        write(args.val, args.jets // 4, folder / "val.parquet")
        files = networks(args.network, folder)
        training = ["--data-train", folder / "train.parquet", "--data-val", folder / "val.parquet", "--fetch-step", 1]
        training += ["--num-epochs", 1, "--lr-scheduler", "none", "--start-lr", 1e-3, "--run-mode", "train,val"]
        training += ["--batch-size", args.batch_size]
        if args.profile:
            for which, network in files.items():
                profile = folder / f"{which}.profile"
                found = weaver(network, args.threads, *training, "-m", f"{which}/net", profile=profile)
                print(which, {key: round(value, 1) for key, value in found.items()})
                for part, seconds in shares(profile).items():
                    print(f"  {part}: {seconds:.1f} s", flush=True)
            return
        results: dict[str, list[dict[str, float]]] = {which: [] for which in files}
        for _ in range(args.rounds):
            for which, network in files.items():
                results[which].append(weaver(network, args.threads, *training, "-m", f"{which}/net"))
                print(which, {key: round(value, 1) for key, value in results[which][-1].items()}, flush=True)
        for key in results["weaver"][0]:
            theirs, ours = (median(found[key] for found in results[which]) for which in ("weaver", "fasttag"))
            print(f"{key}: weaver {theirs:.1f}, fasttag {ours:.1f}")
        scores = {}
        for which, network in files.items():
            out = folder / f"{which}.parquet"
            weaver(
                *(network, args.threads, "--predict", "--data-test", folder / "val.parquet"),
                *("-m", folder / "weaver" / "weaver" / "net_best_epoch_state.pt", "--predict-output", out),
            )
            scores[which] = ak.to_numpy(ak.from_parquet(out)["scores"])
        off = np.abs(scores["weaver"] - scores["fasttag"])
        print(f"predict, same checkpoint: scores differ by at most {off.max():.1e}, median {np.median(off):.1e}")


if __name__ == "__main__":
    main()
