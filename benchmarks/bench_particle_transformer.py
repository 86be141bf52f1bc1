"""Particle Transformer with random weights, inference and a training step, against weaver-core and ONNX Runtime."""

import copy

import numpy as np
import onnx_peer
import pytest
import torch
from torch.nn.functional import cross_entropy

import networks
from fasttag import get_threads, models, set_threads
from peers import Peak
from timing import torch_threads

WEAVER = {
    "network": "ParticleTransformer",
    "config": {"input_dim": 7, "num_classes": 2, "use_pre_activation_pair": False},
}


def flops(p):
    """Of the matrix products, per jet: tokens, class token, class attention, pairs once, attention."""
    n = np.diff(p.offsets).astype(float)
    return 2 * float((1_704_832 * n + 390_000 + 66_048 * n + 4480 * n * (n + 1) + 2048 * n * n).mean())


def build():
    torch.manual_seed(0)
    return models.build("particle_transformer")


@pytest.mark.parametrize(("batch", "target"), [(1, 4000), (32, 3600), (64, 3600)])
def test_inference(compare, problem, child, tmp_path, batch, target):
    p = problem("reference")
    p = networks.of_length(p, 50) if batch == 1 else p.first(batch)
    model, inputs = build().eval(), networks.inputs_of(p)
    with torch.inference_mode(), torch_threads(1):
        found = model(inputs)
        exact = copy.deepcopy(model).double()(inputs._replace(x=inputs.x.double(), p4=inputs.p4.double()))
        networks.check(found, exact.numpy(), 2e-2, 1e-3)
        theirs = networks.weaver(child, model, inputs, tmp_path, **WEAVER, threads=1, training=False)
        if theirs[0]:
            theirs[0]()
            networks.check(found, child.result()[0], 2e-2, 1e-3)
        compare(
            "particle_transformer",
            "n = 50" if batch == 1 else "reference",
            f"B = {batch}, inference",
            p,
            lambda: model(inputs),
            {"weaver": theirs, "ONNX Runtime": onnx_peer.peer(model, p)},
            flops=flops(p),
            target={"us": target, "ceiling": "sgemm_1"},
        )


def test_training_step(compare, problem, child, tmp_path, smoke):
    """Forward and backward with weaver's dropout; the loss is random, so its float64 value at rate 0 is checked."""
    p = problem("reference").first(32 if smoke else 256)
    model, inputs, label = build(), networks.inputs_of(p), torch.arange(p.first(32 if smoke else 256).jets) % 2
    before = get_threads()
    set_threads(2)
    try:
        with torch_threads(2):

            def step():
                with Peak() as peak:
                    cross_entropy(model(inputs), label).backward()
                model.zero_grad()
                return peak.bytes

            theirs = networks.weaver(child, model, inputs, tmp_path, **WEAVER, threads=2, training=True)
            memory = {"fasttag": step()}
            if theirs[0]:
                theirs[0]()
                memory["weaver"] = int(child.result()[0][0])
            compare(
                "particle_transformer",
                "reference",
                f"B = {p.jets}, training step",
                p,
                step,
                {"weaver": theirs},
                flops=3 * flops(p),
                threads=2,
                target={"ratio": 3.0},
                step_memory=memory,
            )
    finally:
        set_threads(before)
