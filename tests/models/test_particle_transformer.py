"""Particle Transformer against weaver-core's numbers and against an independent padded version."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm

from fasttag import models
from fasttag.features import Inputs
from fasttag.models.particle_transformer import ParticleTransformer

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
SMALL = {"num_layers": 2, "embed_dims": (16, 24, 32), "pair_embed_dims": (12, 8), "num_heads": 4}
NO_DROPOUT = {"dropout": 0.0, "attn_dropout": 0.0, "activation_dropout": 0.0}


def ragged(x: torch.Tensor, points: torch.Tensor, p4: torch.Tensor, mask: torch.Tensor) -> Inputs:
    """Inputs from padded ones: x (J, P, F), points (J, P, 2), p4 (J, P, 4), mask (J, P)."""
    counts = mask.sum(1)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Inputs(
        x[mask], points[mask], p4[mask].T.contiguous(), offsets, offsets.numpy().copy(), max(counts.tolist(), default=0)
    )


def golden_inputs(dtype: torch.dtype = torch.float64) -> tuple[Inputs, torch.Tensor]:
    z = np.load(GOLDEN / "model_inputs.npz")
    padded = (torch.from_numpy(z[name]).to(dtype).mT for name in ("features", "points", "vectors_pxpypze"))
    return ragged(*padded, torch.from_numpy(z["mask"][:, 0])), torch.from_numpy(z["label"]).long()


def golden_model(dtype: torch.dtype = torch.float64) -> tuple[ParticleTransformer, Any]:
    z = np.load(GOLDEN / "part_weaver.npz")
    config = json.loads(str(z["config"]))
    model = models.build(
        "particle_transformer",
        num_layers=config["num_layers"],
        use_pre_activation_pair=True,
        bn_stats=("padded", 82),
        **NO_DROPOUT,
    )
    state = {key.removeprefix("state/"): torch.from_numpy(z[key]) for key in z.files if key.startswith("state/")}
    model.load_state_dict(state)
    return model.to(dtype), z


@pytest.mark.shared
def test_evaluation_is_weavers():
    model, z = golden_model()
    inputs, _ = golden_inputs()
    with torch.no_grad():
        logits = model.eval()(inputs)
    torch.testing.assert_close(logits, torch.from_numpy(z["logits_eval_float64"]), rtol=1e-9, atol=1e-9)
    with_gradient = model(inputs)  # in one piece, not in blocks of jets
    torch.testing.assert_close(with_gradient, logits, rtol=1e-11, atol=1e-11)
    single, _ = golden_model(torch.float32)
    with torch.no_grad():
        found = single.eval()(golden_inputs(torch.float32)[0]).double()
    # the float32 ln m^2 of massless pairs is rounding noise: what weaver's own float32 is off by
    assert (found - logits).abs().max() < 1.2e-2 and (found - logits).abs().median() < 6e-4


@pytest.mark.shared
def test_training_is_weavers():
    """One step's logits, loss, gradients and running statistics."""
    model, _ = golden_model()
    z = np.load(GOLDEN / "part_weaver_float64.npz")
    inputs, label = golden_inputs()
    logits = model.train()(inputs)
    loss = cross_entropy(logits, label)
    loss.backward()

    def close(found: torch.Tensor, expected: np.ndarray, scale: float = 1.0) -> None:
        torch.testing.assert_close(found, torch.from_numpy(np.asarray(expected)), rtol=1e-9, atol=1e-9 * scale)

    close(logits.detach(), z["logits_train_float64"])
    close(loss.detach(), z["loss_train_float64"])
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    seen = set()
    for key in z.files:
        kind, _, name = key.partition("/")
        if kind == "grad_float64":
            close(gradients[name].reshape(z[key].shape), z[key], largest)
        elif kind == "grad_head_float64":
            close(gradients[name].flatten()[: z[key].size], z[key].ravel(), largest)
        elif kind == "grad_norm_float64":
            close(gradients[name].norm(), z[key], largest)
        seen.add(name)
    assert set(gradients) <= seen
    buffers = dict(model.named_buffers())
    assert {"buffer_after_float64/" + name for name in buffers} <= set(z.files)
    for name, buffer in buffers.items():
        close(buffer, z["buffer_after_float64/" + name])


def padded_jets(counts: list[int], columns: int = 7, seed: int = 4) -> tuple[torch.Tensor, ...]:
    """x, points, p4 and mask of jets, float64; what lies in padded places must not matter."""
    rng = np.random.default_rng(seed)
    shape = (len(counts), max(counts) + 2)
    pt, eta, phi = rng.exponential(12.0, shape) + 0.1, rng.normal(0.4, 0.3, shape), rng.normal(3.0, 0.3, shape)
    p4 = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), np.hypot(pt * np.cosh(eta), 5.0)], 2)
    mask = np.arange(shape[1]) < np.array(counts)[:, None]
    x = rng.normal(size=(*shape, columns))
    return tuple(torch.from_numpy(a) for a in (x, np.stack([eta, phi], 2), p4, mask))


def norm(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], layer.weight, layer.bias)


def standardised(x: torch.Tensor, mask: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """Batch normalisation of the last axis, statistics of the real entries in training."""
    mean, var = layer.running_mean, layer.running_var
    if layer.training:
        real = x[mask]
        mean, var = real.mean(0), real.var(0, unbiased=False)
    return (x - mean) / (var + 1e-5).sqrt() * layer.weight + layer.bias


def padded_pairs(model: ParticleTransformer, p4: torch.Tensor, mask: torch.Tensor, extra: Any) -> torch.Tensor:
    """The bias (J, H, P, P), from all pairs of places."""
    px, py, pz, e = p4.unbind(2)
    pt, y, phi = torch.hypot(px, py), 0.5 * torch.log((e + pz) / (e - pz)), torch.atan2(py, px)
    pair = lambda a, f: f(a[:, :, None], a[:, None])
    dphi = torch.remainder(pair(phi, torch.sub) + math.pi, 2 * math.pi) - math.pi
    delta = (pair(y, torch.sub) ** 2 + dphi**2).sqrt()
    px, py, pz, e = (pair(a, torch.add) for a in (px, py, pz, e))
    least, total = pair(pt, torch.minimum), pair(pt, torch.add)
    features = (
        torch.stack([least * delta, least / total, delta, e**2 - (px**2 + py**2 + pz**2)], 3).clamp(min=1e-8).log()
    )
    both = mask[:, :, None] & mask[:, None]
    counted = both if extra is not None else both.tril()
    if model.pair_embed.options["remove_self_pair"]:
        counted = counted & ~torch.eye(mask.shape[1], dtype=torch.bool)

    def embed(x: torch.Tensor, layers: torch.nn.Sequential, counted: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            if isinstance(layer, torch.nn.BatchNorm1d):
                x = standardised(x, counted, layer)
            elif isinstance(layer, torch.nn.Conv1d):
                x = x @ layer.weight[:, :, 0].T + layer.bias
            else:
                x = gelu(x)
        return x

    bias = embed(features, model.pair_embed.embed, counted)
    if model.pair_embed.options["remove_self_pair"]:
        bias = bias * ~torch.eye(mask.shape[1], dtype=torch.bool)[..., None]
    if extra is not None:
        bias = bias + embed(extra, model.pair_embed.fts_embed, both)
    return bias.permute(0, 3, 1, 2)


def padded_attention(
    block: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, real: torch.Tensor, bias: Any
) -> torch.Tensor:
    weights, biases = block.attn.in_proj.weight.chunk(3), block.attn.in_proj.bias.chunk(3)
    heads = lambda x, i: (x @ weights[i].T + biases[i]).unflatten(2, (block.heads, -1)).transpose(1, 2)
    q, k, v = heads(query, 0), heads(key, 1), heads(key, 2)
    scores = q @ k.mT / math.sqrt(q.shape[3]) + bias
    share = scores.masked_fill(~real[:, None, None], -1e9).softmax(3)
    o = (share @ v).transpose(1, 2).flatten(2) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    return (o.unflatten(2, (block.heads, -1)) * block.c_attn[:, None]).flatten(2)


def after(block: torch.nn.Module, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
    x = x + norm(o, block.post_attn_norm)
    t = norm(gelu(block.fc1(norm(x, block.pre_fc_norm))), block.post_fc_norm)
    return block.fc2(t) + block.w_resid * x


def padded_part(
    model: ParticleTransformer, x: torch.Tensor, p4: torch.Tensor, mask: torch.Tensor, extra: Any = None
) -> torch.Tensor:
    bias = padded_pairs(model, p4, mask, extra)
    x = standardised(x, mask, model.embed.input_bn)
    for layer in model.embed.embed:
        x = layer(x)
    for block in model.blocks:
        u = norm(x, block.pre_attn_norm)
        x = after(block, x, padded_attention(block, u, u, mask, bias))
    cls, real = model.cls_token.expand(len(x), -1, -1), torch.cat([mask[:, :1] | True, mask], 1)
    for block in model.cls_blocks:
        u = norm(torch.cat([cls, x], 1), block.pre_attn_norm)
        cls = after(block, cls, padded_attention(block, cls, u, real, torch.zeros(())))
    return model.fc(norm(cls[:, 0], model.norm))


def random_model(**config: Any) -> ParticleTransformer:
    """Nothing at its initial value, where what is forgotten would not show."""
    torch.manual_seed(3)
    model = models.build("particle_transformer", **{**SMALL, **NO_DROPOUT, **config}).double()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.2 * (torch.rand_like(tensor) if name.endswith("_var") else torch.randn_like(tensor)))
    return model


COUNTS = [3, 0, 17, 1, 40, 16, 2]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_pre_activation_pair": True, "fc_params": ((10, 0.0),)},
        {"remove_self_pair": True},
        {"pair_extra_dim": 3},
        {"inputs": "full"},
    ],
)
def test_is_the_padded_version(config, training):
    """Logits and all gradients."""
    model = random_model(**config).train(training)
    x, points, p4, mask = padded_jets(COUNTS, 17 if "inputs" in config else 7)
    padded_extra = extra = None
    if model.pair_extra_dim:
        padded_extra = torch.from_numpy(np.random.default_rng(5).normal(size=(*mask.shape, mask.shape[1], 3)))
        extra = padded_extra[mask[:, :, None] & mask[:, None]]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = model(ragged(x, points, p4, mask), extra=extra)
    gradients = torch.autograd.grad(found.square().sum(), list(model.parameters()), allow_unused=True)
    model.load_state_dict(state)
    expected = padded_part(model, x, p4, mask, padded_extra)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    for (name, _), a, b in zip(model.named_parameters(), gradients, wanted):
        assert a is not None, name
        torch.testing.assert_close(
            a, b, rtol=1e-10, atol=1e-10 * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_blocks_of_jets_change_nothing(monkeypatch):
    model = random_model(pair_extra_dim=3).eval()
    inputs = ragged(*padded_jets(COUNTS))
    pairs = int((inputs.offsets.diff() ** 2).sum())
    extra = torch.from_numpy(np.random.default_rng(5).normal(size=(pairs, 3)))
    whole = model(inputs, extra=extra).detach()
    monkeypatch.setattr("fasttag.models.particle_transformer.BLOCK", 20)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs, extra=extra), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        {"embed_dims": (16, 8), "num_heads": 1},
        {"embed_dims": (32,), "num_heads": 16, "inputs": "full"},
        {"embed_dims": (16, 24), "num_heads": 3, "num_layers": 1},
        {"embed_dims": (16, 24), "num_heads": 6, "num_cls_layers": 1},
        {"embed_dims": (16, 40), "num_heads": 40},  # not with the kernel, which has 32 lanes for heads
        {"embed_dims": (16, 20), "num_heads": 4},  # not with the kernel, which wants multiples of 8
    ],
)
def test_without_gradients_the_same(config):
    model = random_model(**config).eval()
    inputs = ragged(*padded_jets(COUNTS, columns=model.embed.input_bn.num_features))
    expected = model(inputs).detach()
    for block in (torch.no_grad(), torch.inference_mode()):
        with block:
            torch.testing.assert_close(model(inputs), expected, rtol=1e-11, atol=1e-11)
    single, few = copy.deepcopy(model).float(), inputs._replace(x=inputs.x.float(), p4=inputs.p4.float())
    with torch.no_grad():
        found = single(few)
    torch.testing.assert_close(found, single(few).detach(), rtol=1e-4, atol=1e-4)


def _replaced(model):
    state = {name: tensor.clone() * 1.1 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _by_data(model):
    for parameter in model.parameters():
        parameter.data *= 1.1
    model.eval()


def _another_parameter(model):
    model.cls_token = torch.nn.Parameter(model.cls_token.detach() + 1)


CHANGES = {
    "in place": lambda model: model.blocks[1].fc1.weight.mul_(1.1),
    "buffer": lambda model: model.pair_embed.embed[0].running_mean.add_(0.3),
    "state": lambda model: model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()}),
    "assigned": _replaced,
    "parameter": _another_parameter,
    "memory": lambda model: setattr(model.norm.bias, "data", model.norm.bias + 1),
    "data": _by_data,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_sees_changed_weights(change, mode):
    model = random_model().eval()
    inputs = ragged(*padded_jets(COUNTS))
    with mode():
        before = model(inputs)
        assert torch.equal(model(inputs), before)
        CHANGES[change](model)
        found = model(inputs)
        torch.testing.assert_close(found, model.fc(model._features(inputs, None)), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(found, before)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    with torch.no_grad():
        twin.norm.bias.add_(1)
        assert not torch.allclose(twin(inputs), found) and torch.equal(model(inputs), found)


def test_order_of_constituents_does_not_matter():
    model = random_model().eval()
    x, points, p4, mask = padded_jets([20, 20])
    order = torch.from_numpy(np.random.default_rng(6).permutation(20))
    permuted = [a[:, order] for a in (x, points, p4, mask)]
    with torch.no_grad():
        found, expected = model(ragged(*permuted)), model(ragged(*(a[:, :20] for a in (x, points, p4, mask))))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_no_jets():
    model = random_model().eval()
    x, points, p4, mask = padded_jets([2])
    inputs = ragged(x[:0], points[:0], p4[:0], mask[:0])._replace(max_n=0)
    with torch.no_grad():
        assert model(inputs).shape == (0, 2)


def test_dropout_follows_torchs_generator():
    model = models.build(
        "particle_transformer", **SMALL, dropout=0.0, attn_dropout=0.3, activation_dropout=0.0
    ).double()
    inputs = ragged(*padded_jets(COUNTS))
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(model(inputs).detach())
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def test_frozen_statistics_stay():
    model = random_model(bn="frozen").train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    inputs = ragged(*padded_jets(COUNTS))
    found = model(inputs)
    found.sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    torch.testing.assert_close(found, model.eval()(inputs), rtol=1e-12, atol=1e-12)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradient_in_four_vectors():
    """Without pairs of a constituent with itself, whose ln m^2 is defined to have none."""
    model = random_model(remove_self_pair=True).eval()
    inputs = ragged(*padded_jets([3, 5]))
    p4 = inputs.p4.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p4: model(inputs._replace(p4=p4)), p4)


def test_features_and_a_new_head():
    model = random_model().eval()
    inputs = ragged(*padded_jets(COUNTS))
    logits, features = model(inputs, return_features=True)
    assert features.shape == (len(COUNTS), 32) and torch.equal(logits, model.fc(features))
    model.replace_head(("QCD", "W", "top"), signal=2, fc_params=((8, 0.1),))
    assert model(inputs).shape == (len(COUNTS), 3) and model.classes == ("QCD", "W", "top")
    assert torch.equal(model(inputs, return_features=True)[1], features)
    assert models.describe(model)["config"]["fc_params"] == [[8, 0.1]]
    head = model.fc
    with pytest.raises(ValueError, match="signal must index classes"):
        model.replace_head(("QCD", "top"), signal=2)
    assert model.fc is head and model.signal == 2 and model.classes == ("QCD", "W", "top")


@pytest.mark.parametrize(("config", "number"), [({}, 2_141_134), ({"classes": list("abcdefghij")}, 2_142_166)])
def test_parameter_count(config, number):
    model = models.build("particle_transformer", **config)
    assert sum(parameter.numel() for parameter in model.parameters()) == number


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"inputs": "pid"}, "inputs must be one of kin, kinpid, full or a number of columns, got 'pid'"),
        ({"num_heads": 7}, "num_heads must divide the width 128, got 7"),
        ({"bn": "eval"}, 'bn must be "batch" or "frozen", got \'eval\''),
        ({"m2": "exact"}, 'm2 must be "reference" or "stable", got \'exact\''),
        ({"num_layers": 0}, "num_layers must be 1 or more, got 0"),
        ({"num_cls_layers": 0}, "num_cls_layers must be 1 or more, got 0"),
        ({"bn_stats": ("padded", 0)}, r"bn_stats must be .*, got \('padded', 0\)"),
        ({"remove_self_pair": True, "pair_extra_dim": 2}, "remove_self_pair must be False .* got pair_extra_dim=2"),
    ],
)
def test_bad_configuration(config, message):
    with pytest.raises(ValueError, match=message):
        models.build("particle_transformer", **config)


def test_extra_inputs_must_fit_the_model():
    inputs = ragged(*padded_jets([3]))
    with pytest.raises(ValueError, match=r"extra must have shape .* = \(9, 0\), got \(9, 3\)"):
        random_model()(inputs, extra=torch.zeros(9, 3).double())
    model = random_model(pair_extra_dim=3)
    with pytest.raises(ValueError, match=r"extra must have shape .* = \(9, 3\), got None"):
        model(inputs)
    for shape in ((8, 3), (9, 2), (3, 9), (9,)):
        with pytest.raises(ValueError, match=r"extra must have shape .* = \(9, 3\), got \("):
            model(inputs, extra=torch.zeros(shape).double())
    with pytest.raises(TypeError, match=r"extra must be a tensor of the features' torch.float64, got torch.float32"):
        model(inputs, extra=torch.zeros(9, 3))


@pytest.mark.parametrize("config", [{}, {"pair_extra_dim": 3}, {"remove_self_pair": True}])
@pytest.mark.parametrize("counts", [[0, 0], [1, 1], []])
def test_training_on_jets_without_pairs(counts, config):
    """Or without constituents, or no jets: nothing is learned of what is not there."""
    model = random_model(**config).train()
    x, points, p4, mask = (array[: len(counts)] for array in padded_jets(counts or [2]))
    inputs = ragged(x, points, p4, mask)._replace(offsets_host=np.concatenate([[0], np.cumsum(counts, dtype=int)]))
    extra = torch.zeros(sum(counts), 3).double() if "pair_extra_dim" in config else None
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert model(inputs, extra=extra).shape == (len(counts), 2)
    after = dict(model.named_buffers())
    if not sum(counts):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(buffer.isfinite().all() for buffer in after.values())
    some = ragged(*padded_jets(COUNTS))
    extra = None if extra is None else torch.zeros(int((some.offsets.diff() ** 2).sum()), 3).double()
    assert model.eval()(some, extra=extra).isfinite().all()


def test_norms_in_evaluation_mode_stay_frozen():
    """The usual way with torch; extra inputs have norms of their own."""
    inputs = ragged(*padded_jets(COUNTS))
    extra = torch.from_numpy(np.random.default_rng(5).normal(size=(int((inputs.offsets.diff() ** 2).sum()), 3)))
    model = random_model(pair_extra_dim=3).train()
    norms = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.BatchNorm1d)}
    for part in norms.values():
        part.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = model(inputs, extra=extra)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    torch.testing.assert_close(found, model.eval()(inputs, extra=extra), rtol=1e-12, atol=1e-12)
    model.train()
    norms["pair_embed.fts_embed.0"].eval()
    model(inputs, extra=extra)
    moved = {name.rsplit(".", 1)[0] for name, buffer in model.named_buffers() if not torch.equal(before[name], buffer)}
    assert moved == norms.keys() - {"pair_embed.fts_embed.0"}


def test_padded_statistics_need_room():
    with pytest.raises(
        ValueError, match=r"bn_stats must be of a P that jets fit in, got \('padded', 2\) for 1 jets of 3"
    ):
        random_model(bn_stats=("padded", 2)).train()(ragged(*padded_jets([3])))
