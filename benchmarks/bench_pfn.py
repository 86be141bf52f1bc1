"""Inference of the particle flow network on one ragged batch, against the usual padded torch form."""

import copy

import numpy as np
import pytest
import torch

import fasttag
from fasttag import _baselines, features, models
from timing import local, torch_threads

LENGTH = 128


@pytest.mark.parametrize("threads", [1, 2])
def test_pfn(compare, problem, threads):
    p = problem("jets46")
    torch.manual_seed(0)
    model = models.build("pfn").eval()
    inputs = features.energy_flow(fasttag.Jets(p.p4, p.offsets).to(library="torch"))
    x, valid = map(torch.from_numpy, _baselines.pad(inputs.x.T.numpy(), p.offsets, LENGTH))
    ours, padded = lambda: model(inputs), lambda: _baselines.pfn(model, x, valid)
    with torch.inference_mode(), torch_threads(threads):
        expected = _baselines.pfn(copy.deepcopy(model).double(), x.double(), valid).numpy()
        for logits in (ours(), padded()):
            np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)
        weights = [sum(w.numel() for w in part.parameters() if w.ndim == 2) for part in (model.phi, model.f)]
        compare(
            "pfn",
            "jets46",
            f"B = {p.jets}, inference",
            p,
            ours,
            {f"torch, padded to {LENGTH}": local(padded, p)},
            flops=2 * (weights[0] * p.constituents + weights[1]),
            threads=threads,
            target={"ratio": 4.0},
        )
