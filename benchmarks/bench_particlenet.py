"""ParticleNet: one jet, a batch, a training step; beside weaver-core's and ONNX Runtime, padded to the longest jet."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import fasttag
import onnx_peer
from fasttag import features, models
from problems import Problem
from timing import torch_threads


def build(p, training):
    torch.manual_seed(0)
    model = models.build("particlenet", missing="ghost", bn_stats=("padded", max(17, int(np.diff(p.offsets).max()))))
    if training:
        model.fc[0][2].p = 0.0
    return model.train(training)


def flops(model, p):
    """Of the products, the first layer of each block taken apart: 143 M multiply-adds at 50 constituents."""
    total = sum(w.numel() for w in model.fc.parameters() if w.ndim == 2)
    for block in model.edge_convs:
        first, *rest = block.convs
        total += p.constituents * (first.weight.numel() + block.sc.weight.numel())
        total += p.constituents * block.k * sum(conv.weight.numel() for conv in rest)
    return 2 * total


def weaver(child, inputs, model, gradient):
    if child is None:
        return None
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    arrays = {"x": inputs.x.numpy(), "points": inputs.points.numpy(), "offsets": inputs.offsets_host}
    return child.prepare("weaver_particlenet", {**arrays, **state}, names=list(state), gradient=gradient)


def one_jet(p):
    """The first jet of 50 constituents, or what comes next to it."""
    j = int(np.abs(np.diff(p.offsets) - 50).argmin())
    a, b = p.offsets[j : j + 2]
    return Problem(np.ascontiguousarray(p.p4[:, a:b]), np.array([0, b - a]))


@pytest.mark.parametrize("batch", [1, 32])
def test_inference(compare, problem, child, batch):
    p = problem("jets46")
    p = one_jet(p) if batch == 1 else p.first(batch)
    model = build(p, False)
    inputs = features.kin(fasttag.Jets(p.p4, p.offsets).to(library="torch"))
    with torch.inference_mode(), torch_threads(1):
        exact = copy.deepcopy(model).double()(inputs._replace(x=inputs.x.double(), points=inputs.points.double()))
        ours = lambda: model(inputs)
        # a neighbour more or less far by a rounding makes another graph: few jets, and their logits move by less than 1
        difference = (ours() - exact).abs().amax(1)
        assert difference.median() < 1e-4 and difference.max() < 1, "wrong: not timed"
        peer = weaver(child, inputs, model, False)
        if peer:
            peer()
            theirs = np.abs(child.result()[0] - exact.numpy()).max(1)
            assert np.median(theirs) < 1e-4, "not the peer's: not timed"
        compare(
            "particlenet",
            "jets46",
            f"B = {batch}, inference",
            p,
            ours,
            {"weaver": (peer, p.jets), "ONNX Runtime": onnx_peer.peer(model, p)},
            flops=flops(model, p),
            target={"us": 4800, "ceiling": "sgemm_1"},
        )


def test_training_step(compare, problem, child):
    """Forward, loss and backward of 64 jets, batch statistics counting padded rows as weaver's do."""
    p = problem("jets46").first(64)
    model = build(p, True)
    inputs = features.kin(fasttag.Jets(p.p4, p.offsets).to(library="torch"))
    label = torch.arange(p.jets) % 2
    before = copy.deepcopy(model.state_dict())

    def loss_of(model, inputs):
        model.zero_grad()
        loss = cross_entropy(model(inputs), label)
        loss.backward()
        return float(loss.detach())

    exact = loss_of(copy.deepcopy(model).double(), inputs._replace(x=inputs.x.double(), points=inputs.points.double()))
    assert abs(loss_of(model, inputs) / exact - 1) < 1e-3, "wrong: not timed"
    model.load_state_dict(before)
    peer = weaver(child, inputs, model, True)
    if peer:
        peer()
        assert abs(float(child.result()[0]) / exact - 1) < 1e-2, "not the peer's: not timed"
    with torch_threads(1):
        compare(
            "particlenet",
            "jets46",
            f"B = {p.jets}, training step",
            p,
            lambda: loss_of(model, inputs),
            {"weaver": (peer, p.jets)},
            flops=3 * flops(model, p),
        )
