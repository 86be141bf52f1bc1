"""One edge convolution, 64 to 128 channels, as in the second block of ParticleNet, beside weaver-core's block."""

import numpy as np
import pytest
import torch

from fasttag.models.particlenet import EdgeConv
from fasttag_kernels.edge_conv import edge_conv, reference
from fasttag_kernels.knn import knn
from tolerances import TOLERANCES

K, COLUMNS, WIDTHS, ORACLE = 16, 64, (128, 128, 128), 4


def flops(p):
    """Of the products behind the first layer taken apart."""
    return 2 * p.constituents * (3 * COLUMNS * WIDTHS[0] + K * 2 * WIDTHS[0] ** 2)


@pytest.mark.parametrize("gradient", [False, True])
def test_edge_conv(compare, problem, child, gradient):
    p = problem("jets46").first(32)
    torch.manual_seed(0)
    block = EdgeConv(K, COLUMNS, WIDTHS)
    x = np.random.default_rng(1).normal(size=(p.p4.shape[1], COLUMNS)).astype(np.float32)
    near = knn(x, K, offsets=p.offsets)
    norms = [*block.bns, block.sc_bn]
    convs = [*block.convs, block.sc]
    weights = [w.detach() for c, n in zip(convs, norms) for w in (c.weight.flatten(1), n.weight, n.bias)]
    running = [r for n in norms for r in (n.running_mean, n.running_var)]
    given = torch.from_numpy(near), torch.from_numpy(p.offsets)

    some = p.first(ORACLE)
    end = some.offsets[-1]
    arrays = x[:end], near[:end], some.offsets, *([a.numpy() for a in found] for found in (weights, running))
    rtol, atol = TOLERANCES["edge_conv", "float32"]
    expected = reference.edge_conv(*arrays)
    error = np.abs(edge_conv(*arrays) - expected)
    assert (error <= rtol * np.abs(expected) + atol * reference.rounding_scale(*arrays)).all(), "wrong: not timed"

    leaves = [torch.from_numpy(x).requires_grad_(gradient), *(w.clone().requires_grad_(gradient) for w in weights)]

    def ours():
        if not gradient:
            return edge_conv(leaves[0], *given, leaves[1:], running)
        out, _ = edge_conv(leaves[0], *given, leaves[1:], [], statistics="batch")
        return torch.autograd.grad(out.sum(), leaves)

    others = {"weaver": (None, 1)}
    if child:
        state = {name: value.detach().numpy() for name, value in block.state_dict().items()}
        weaver = child.prepare(
            "weaver_edge_conv",
            {"x": x, "offsets": p.offsets, **state},
            names=list(state),
            k=K,
            columns=COLUMNS,
            widths=WIDTHS,
            gradient=gradient,
        )
        weaver()
        theirs = child.result()
        if gradient:
            # in training weaver's statistics also count its padded rows
            assert 0.5 < np.abs(theirs[0]).sum() / np.abs(ours()[1].numpy()).sum() < 2, "not the peer's: not timed"
        else:
            found = np.concatenate([row[:, :n].T for row, n in zip(theirs[0], np.diff(p.offsets))])
            assert np.quantile(np.abs(found - ours().numpy()), 0.99) < 1e-4, "not the peer's: not timed"
        others = {"weaver": (weaver, p.jets)}
    compare(
        "edge_conv",
        "jets46",
        "64 to 128, batch statistics and gradient" if gradient else "64 to 128",
        p,
        ours,
        others,
        flops=(3 if gradient else 1) * flops(p),
        target={} if gradient else {"share": 0.6},
    )
