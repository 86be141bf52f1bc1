"""Particle Transformer with random weights, inference and a training step, against weaver-core and ONNX Runtime."""

import copy

import numpy as np
import pytest
import torch

import networks
import onnx_peer
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
        exact = copy.deepcopy(model).double()(networks.doubled(inputs))
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
    """Forward, loss and backward with weaver's dropout; checked without, where the loss is not random."""
    p = problem("reference").first(32 if smoke else 256)
    model, inputs, before = build(), networks.inputs_of(p), get_threads()
    none = {"dropout": 0.0, "attn_dropout": 0.0, "activation_dropout": 0.0}
    plain = models.build("particle_transformer", bn_stats=("padded", inputs.max_n), **none)
    plain.load_state_dict(model.state_dict())
    exact = networks.loss_of(copy.deepcopy(plain).double(), networks.doubled(inputs))
    found = networks.loss_of(plain, inputs)
    # in float32 ln m^2 of massless pairs is rounding, which batch statistics spread; weaver's has the same bits
    assert abs(found / exact - 1) < 0.1, "wrong: not timed"
    config = {**WEAVER["config"], "block_params": none, "trim": False}
    theirs, _ = networks.weaver(
        child, model, inputs, tmp_path, **{**WEAVER, "config": config}, threads=2, training=True
    )
    if theirs:
        theirs()
        assert abs(child.result()[0][0] / found - 1) < 1e-3, "not the peer's: not timed"
    set_threads(2)
    try:
        with torch_threads(2):
            theirs = networks.weaver(child, model, inputs, tmp_path, **WEAVER, threads=2, training=True)
            with Peak() as peak:
                networks.loss_of(model, inputs)
            memory = {"fasttag": peak.bytes}
            if theirs[0]:
                theirs[0]()
                memory["weaver"] = int(child.result()[0][1])
            compare(
                "particle_transformer",
                "reference",
                f"B = {p.jets}, training step",
                p,
                lambda: networks.loss_of(model, inputs),
                {"weaver": theirs},
                flops=3 * flops(p),
                threads=2,
                target={"ratio": 3.0},
                step_memory=memory,
            )
    finally:
        set_threads(before)
