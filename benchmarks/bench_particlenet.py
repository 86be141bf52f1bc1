"""ParticleNet with random weights, inference and a training step, against weaver-core and ONNX Runtime."""

import copy

import numpy as np
import pytest
import torch

import networks
import onnx_peer
from fasttag import models
from timing import torch_threads

BLOCKS = [(16, (width,) * 3) for width in (64, 128, 256)]
WEAVER = {"input_dims": 7, "num_classes": 2, "conv_params": BLOCKS, "fc_params": [(256, 0.0)], "use_fusion": False}


def build(inputs):
    """As weaver's: neighbours of small jets are padding, and batch statistics count padded rows."""
    torch.manual_seed(0)
    padded = "padded", max(17, inputs.max_n)
    return models.build("particlenet", missing="ghost", bn_stats=padded, fc_params=[(256, 0.0)])


def flops(model, p):
    """Of the products, the first layer of each block taken apart: 143 M multiply-adds at 50 constituents."""
    total = sum(w.numel() for w in model.fc.parameters() if w.ndim == 2)
    for block in model.edge_convs:
        first, *rest = block.convs
        total += p.constituents * (first.weight.numel() + block.sc.weight.numel())
        total += p.constituents * block.k * sum(conv.weight.numel() for conv in rest)
    return 2 * total


@pytest.mark.parametrize("batch", [1, 32])
def test_inference(compare, problem, child, tmp_path, batch):
    p = problem("reference")
    p = networks.of_length(p, 50) if batch == 1 else p.first(batch)
    inputs = networks.inputs_of(p)
    model = build(inputs).eval()
    with torch.inference_mode(), torch_threads(1):
        exact = copy.deepcopy(model).double()(networks.doubled(inputs))
        # a neighbour more or less far by a rounding makes another graph: few jets, and their logits move by less than 1
        difference = (model(inputs) - exact).abs().amax(1)
        assert difference.median() < 1e-4 and difference.max() < 1, "wrong: not timed"
        theirs = networks.weaver(
            child, model, inputs, tmp_path, network="ParticleNet", config=WEAVER, threads=1, training=False
        )
        if theirs[0]:
            theirs[0]()
            difference = np.abs(child.result()[0] - exact.numpy()).max(1)
            assert np.median(difference) < 1e-4, "not the peer's: not timed"
        compare(
            "particlenet",
            "n = 50" if batch == 1 else "reference",
            f"B = {batch}, inference",
            p,
            lambda: model(inputs),
            {"weaver": theirs, "ONNX Runtime": onnx_peer.peer(model, p)},
            flops=flops(model, p),
            target={"us": 4800, "ceiling": "sgemm_1"},
        )


def test_training_step(compare, problem, child, tmp_path):
    """Forward, loss and backward; weaver's without its trimmer, which permutes and drops constituents at random."""
    p = problem("reference").first(64)
    inputs = networks.inputs_of(p)
    model = build(inputs).train()
    before = copy.deepcopy(model.state_dict())
    exact = networks.loss_of(copy.deepcopy(model).double(), networks.doubled(inputs))
    assert abs(networks.loss_of(model, inputs) / exact - 1) < 1e-3, "wrong: not timed"
    model.load_state_dict(before)
    config = {**WEAVER, "trim": False}
    theirs = networks.weaver(
        child, model, inputs, tmp_path, network="ParticleNet", config=config, threads=1, training=True
    )
    if theirs[0]:
        theirs[0]()
        assert abs(child.result()[0][0] / exact - 1) < 1e-2, "not the peer's: not timed"
    with torch_threads(1):
        compare(
            "particlenet",
            "reference",
            f"B = {p.jets}, training step",
            p,
            lambda: networks.loss_of(model, inputs),
            {"weaver": theirs},
            flops=3 * flops(model, p),
        )
