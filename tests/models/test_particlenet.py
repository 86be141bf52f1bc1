"""ParticleNet against weaver-core's numbers and against an independent padded version."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fasttag import models
from fasttag.features import Inputs
from fasttag.models import particlenet
from fasttag.ops import knn

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
PARAMETERS = {
    ("particlenet", "kin", 2): 366_160,
    ("particlenet", "kin", 10): 368_216,
    ("particlenet", "kinpid", 10): 369_380,
    ("particlenet", "full", 10): 370_156,
    ("particlenet_lite", "kin", 2): 26_416,
    ("particlenet_lite", "kin", 10): 27_448,
}
SMALL = {"conv_params": ((3, (5, 6)), (4, (6, 8, 6)), (2, (7, 9))), "fc_params": ((10, 0.0),)}
COUNTS = (0, 1, 2, 16, 17, 65, 0, 200, 3)


def ragged(x: torch.Tensor, points: torch.Tensor, mask: torch.Tensor) -> Inputs:
    """Inputs from padded ones: x (J, P, F), points (J, P, 2), mask (J, P)."""
    counts = mask.sum(1)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    longest = max(counts.tolist(), default=0)
    return Inputs(x[mask], points[mask], x.new_zeros(4, int(counts.sum())), offsets, offsets.numpy().copy(), longest)


def golden_inputs(dtype: torch.dtype = torch.float64, whole: tuple[int, ...] = ()) -> tuple[Inputs, torch.Tensor]:
    """Inputs, and which slots they come from; of the jets `whole` all slots."""
    z = np.load(GOLDEN / "model_inputs.npz")
    mask = torch.from_numpy(z["mask"][:, 0])
    mask[list(whole)] = True
    return ragged(*(torch.from_numpy(z[name]).to(dtype).mT for name in ("features", "points")), mask), mask


def golden_neighbours(z: Any, name: str, blocks: int, mask: torch.Tensor) -> list[torch.Tensor]:
    """Those that weaver used; -1 where it took a padded slot."""
    counts = mask.sum(1)[:, None, None].numpy()
    found = (z[f"{name}/{block}"].astype(np.int32) for block in range(blocks))
    return [torch.from_numpy(np.where(near < counts, near, -1))[mask] for near in found]


def golden_model(file: str, **config: Any) -> tuple[nn.Module, Any]:
    z = np.load(GOLDEN / f"{file}.npz")
    if "config" in z.files:
        stored = json.loads(str(z["config"]))
        config = {name: stored[name] for name in ("conv_params", "fc_params", "use_fusion", "use_counts")} | config
    model = models.build("particlenet", **config)
    model.load_state_dict({key[6:]: torch.from_numpy(z[key]) for key in z.files if key.startswith("state/")})
    return model.double(), z


def without_ties(inputs: Inputs, near: list[torch.Tensor]) -> torch.Tensor:
    """Jets whose nearest points are a matter of their coordinates: of equal distances weaver takes any."""
    mine = knn(inputs.points, near[0].shape[1], offsets=inputs.offsets)
    differ = (mine.sort(1).values != near[0].sort(1).values).any(1)
    return torch.tensor([not part.any() for part in differ.split(inputs.offsets.diff().tolist())])


def assert_gives(model, inputs, near, expected, least):
    """With weaver's neighbours, and with our own for the jets, at least so many, in which no two are equally far."""
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(inputs, neighbours=near), expected, rtol=1e-9, atol=1e-9)
        plain = without_ties(inputs, near)
        assert plain.sum() > least
        torch.testing.assert_close(model(inputs)[plain], expected[plain], rtol=1e-9, atol=1e-9)


@pytest.mark.shared
def test_evaluation_is_weavers():
    model, z = golden_model("particlenet_weaver")
    expected = torch.from_numpy(z["logits_eval_float64"])
    inputs, mask = golden_inputs()
    near = golden_neighbours(np.load(GOLDEN / "particlenet_weaver_float64.npz"), "knn_eval_float64", 2, mask)
    assert_gives(model, inputs, near, expected, least=50)


@pytest.mark.shared
def test_published_checkpoint_gives_weavers_logits():
    model, z = golden_model("particlenet_jetclass_kin", classes=tuple("abcdefghij"), missing="ghost")
    expected = torch.from_numpy(z["logits_float64"])
    inputs, mask = golden_inputs()
    near = golden_neighbours(np.load(GOLDEN / "particlenet_jetclass_kin_knn.npz"), "knn_float64", 3, mask)
    assert_gives(model, inputs, near, expected, least=40)
    with torch.no_grad():
        found = model.float()(golden_inputs(torch.float32)[0], neighbours=near).double()
    assert (found - expected).abs().max() < 5e-5


@pytest.mark.shared
def test_training_is_weavers(monkeypatch):
    """One step's logits, loss, gradients and running statistics.

    Of jet 53 three slots are padded, fewer than neighbours are looked for: weaver joins them to real constituents, and
    their edges count in the statistics. Here these slots are constituents that are zero before every block.
    """
    model, _ = golden_model("particlenet_weaver", bn_stats=("padded", 82))
    z = np.load(GOLDEN / "particlenet_weaver_float64.npz")
    _, real = golden_inputs()
    counts = real.sum(1)
    assert torch.nonzero((counts < 82) & (counts >= 82 - 8)).tolist() == [[53]]
    inputs, mask = golden_inputs(whole=(53,))
    real = real[mask][:, None]
    plain = particlenet.batch_norm
    monkeypatch.setattr(particlenet, "batch_norm", lambda *arguments: plain(*arguments) * real)
    for block in model.edge_convs:
        block.register_forward_hook(lambda _, arguments, found: found * real)
    model.fc.register_forward_pre_hook(lambda _, arguments: arguments[0] * (mask.sum(1).double() / counts)[:, None])

    logits = model.train()(inputs, neighbours=golden_neighbours(z, "knn_train_float64", 2, mask))
    loss = cross_entropy(logits, torch.from_numpy(np.load(GOLDEN / "model_inputs.npz")["label"]).long())
    loss.backward()

    def close(found: torch.Tensor, expected: np.ndarray, scale: float = 1.0) -> None:
        torch.testing.assert_close(found, torch.from_numpy(np.asarray(expected)), rtol=1e-9, atol=1e-9 * scale)

    close(logits.detach(), z["logits_train_float64"])
    close(loss.detach(), z["loss_train_float64"])
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        close(gradient, z[f"grad_float64/{name}"], largest)
    for name, buffer in model.named_buffers():
        close(buffer, z[f"buffer_after_float64/{name}"])


def padded_jets(counts: tuple[int, ...], length: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, points and mask of jets, float64; what lies in padded places must not matter."""
    rng = np.random.default_rng(4)
    shape = (len(counts), length or max(counts))
    x, points = rng.normal(size=(*shape, 7)), rng.normal(size=(*shape, 2))
    return torch.from_numpy(x), torch.from_numpy(points), torch.arange(shape[1]) < torch.tensor(counts)[:, None]


def plain_norm(norm: nn.Module, z: torch.Tensor, counted: torch.Tensor, training: bool) -> torch.Tensor:
    """Channels last; statistics of the places that are counted."""
    mean, var = norm.running_mean, norm.running_var
    if training:
        mean = z[counted].mean(0)
        var = z[counted].var(0, correction=0)
    return (z - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias


def plain(model: nn.Module, x: torch.Tensor, points: torch.Tensor, mask: torch.Tensor, padded: bool) -> torch.Tensor:
    """ParticleNet on padded jets (J, P, C) with one (J, P, P, 2 C) array of all pairs."""
    training, length = model.training, x.shape[1]
    counted = torch.ones_like(mask) if padded else mask
    x = x * mask[..., None]
    x = plain_norm(model.bn_fts, x, counted, training) * mask[..., None]
    found = []
    for block in model.edge_convs:
        allowed = mask[:, :, None] & mask[:, None] & ~torch.eye(length, dtype=torch.bool)
        d2 = (points[:, :, None] - points[:, None]).square().sum(3).detach().masked_fill(~allowed, torch.inf)
        near = d2.argsort(stable=True, dim=2)[:, :, : block.k]
        there = d2.gather(2, near) < torch.inf
        other = x[torch.arange(len(x))[:, None, None], near] * there[..., None]
        e = torch.cat([x[:, :, None].expand_as(other), other - x[:, :, None]], 3) * mask[..., None, None]
        weights = there if model.missing == "real" else there | mask[:, :, None]
        edges = weights | (~mask[:, :, None] if padded else torch.zeros(1, dtype=torch.bool))
        for conv, norm in zip(block.convs, block.bns):
            e = torch.relu(plain_norm(norm, e @ conv.weight[:, :, 0, 0].T, edges, training))
        mean = (e * weights[..., None]).sum(2) / weights.sum(2).clamp(min=1)[..., None]
        short = x
        if hasattr(block, "sc"):
            short = plain_norm(block.sc_bn, x @ block.sc.weight[:, :, 0].T, counted, training)
        x = points = torch.relu(short + mean) * mask[..., None]
        found.append(x)
    if hasattr(model, "fusion_block"):
        conv, norm, _ = model.fusion_block
        x = torch.cat(found, 2) @ conv.weight[:, :, 0].T
        x = torch.relu(plain_norm(norm, x, counted, training)) * mask[..., None]
    total = x.sum(1)
    total = total / mask.sum(1).clamp(min=1)[:, None] if model.use_counts else total / length
    (first, _, _), last = model.fc
    return torch.relu(total @ first.weight.T + first.bias) @ last.weight.T + last.bias


def randomised(**config: Any) -> nn.Module:
    """Small, in float64, with statistics and affine parameters that are not 0 and 1."""
    torch.manual_seed(3)
    model = models.build("particlenet", **SMALL, **config).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"missing": "ghost"},
        {"bn_stats": ("padded", 205)},
        {"bn_stats": ("padded", 205), "missing": "ghost", "use_fusion": True, "use_counts": False},
        {"use_fusion": True, "use_counts": False},
    ],
    ids=str,
)
def test_equals_plain_padded_torch(config, training):
    """Logits and gradients in all weights and in the features."""
    model = randomised(**config).train(training)
    padded = "bn_stats" in config
    x, points, mask = padded_jets(COUNTS, 205 if padded else 200)
    label = torch.arange(len(COUNTS)) % 2
    rows = x[mask].requires_grad_()
    inputs = ragged(x, points, mask)._replace(x=rows)
    logits = model(inputs)
    found = torch.autograd.grad(cross_entropy(logits, label), [rows, *model.parameters()])
    x.requires_grad_()
    expected = plain(model, x, points, mask, padded)
    gradients = torch.autograd.grad(cross_entropy(expected, label), [x, *model.parameters()])
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    largest = max(gradient.abs().max() for gradient in gradients[1:])
    for mine, theirs in zip(found, (gradients[0][mask], *gradients[1:]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10 * float(largest))


@pytest.mark.parametrize(("name", "inputs", "classes"), PARAMETERS)
def test_parameter_count(name, inputs, classes):
    model = models.build(name, inputs=inputs, classes=tuple("abcdefghij"[:classes]))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name, inputs, classes]


def test_order_of_constituents_does_not_matter():
    model = randomised().eval()
    x, points, mask = padded_jets((30, 17, 2))
    order = torch.stack([torch.cat([torch.randperm(n), torch.arange(n, 30)]) for n in (30, 17, 2)])
    other = (array.gather(1, order[..., None].expand_as(array)) for array in (x, points))
    with torch.no_grad():
        torch.testing.assert_close(model(ragged(x, points, mask)), model(ragged(*other, mask)), rtol=1e-12, atol=1e-12)


def test_inference_follows_the_weights():
    """Changed in place, put elsewhere, converted, copied: inference has its own copies, which it must make again."""
    model = randomised().eval()
    x, points, mask = padded_jets((30, 17))
    inputs = ragged(x, points, mask)

    def check(model, inputs=inputs):
        with torch.no_grad():
            found = model(inputs)
        torch.testing.assert_close(found, model(inputs).detach(), rtol=1e-6, atol=1e-6)
        return found

    seen = [check(model)]
    conv = model.edge_convs[1]
    with torch.no_grad():
        conv.convs[0].weight.mul_(0.5)
    seen.append(check(model))
    conv.convs[1].weight.data = conv.convs[1].weight.data * 0.5
    seen.append(check(model))
    conv.bns[0] = nn.BatchNorm2d(len(conv.bns[0].weight), dtype=torch.float64).eval()
    seen.append(check(model))
    other = copy.deepcopy(model)
    other.edge_convs[1].bns[1].running_var.mul_(4)
    seen.append(check(other))
    assert torch.equal(check(model), seen[3])
    conv.bns[2].weight.data.mul_(0.5)  # raises no version: seen from the next call of eval() on
    seen.append(check(model.eval()))
    assert all((a - b).abs().max() > 1e-6 for a, b in pairwise(seen))
    check(model.float(), inputs._replace(x=inputs.x.float(), points=inputs.points.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_jets_change_nothing(dtype, monkeypatch):
    """Without gradients: in blocks, in one piece, or each jet by itself, the same bits before the head."""
    model = models.build("particlenet").to(dtype).eval()
    x, points, mask = padded_jets(COUNTS)
    inputs = ragged(x.to(dtype), points.to(dtype), mask)
    pooled = []
    model.fc.register_forward_pre_hook(lambda _, arguments: pooled.append(arguments[0]))
    for block in (1, 100, 10_000):
        monkeypatch.setattr(particlenet, "BLOCK", block)
        with torch.no_grad():
            model(inputs)
    model(inputs)
    assert all(torch.equal(pooled[0], other) for other in pooled[1:])


def test_nan_stays_in_its_jet():
    model = models.build("particlenet_lite").eval()
    x, points, mask = padded_jets((5, 3, 9))
    x[1, 0, 2] = torch.nan
    with torch.no_grad():
        logits = model(ragged(x.float(), points.float(), mask))
    assert logits.isnan().any(1).tolist() == logits.isnan().all(1).tolist() == [False, True, False]


def test_no_jets():
    model = models.build("particlenet_lite").eval()
    with torch.no_grad():
        assert model(ragged(*(array[:0].float() for array in padded_jets((5,))[:2]), torch.ones(0, 5) > 0)).shape == (
            0,
            2,
        )


def test_unknown_inputs():
    with pytest.raises(
        ValueError, match="ParticleNetLite: inputs must be one of kin, kinpid, full or a number of columns, got 'all'"
    ):
        models.build("particlenet_lite", inputs="all")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"missing": "none"}, 'ParticleNetLite: missing must be "real" or "ghost", got \'none\''),
        ({"bn_stats": "padded"}, "bn_stats must be .* got 'padded'"),
        ({"bn_stats": ("padded", 1.5)}, "bn_stats must be"),
        ({"conv_params": ()}, r"conv_params must be .* got \(\)"),
        ({"conv_params": [(7, (8,))]}, "conv_params must be"),
        ({"conv_params": [(0, (8, 8))]}, "conv_params must be"),
        ({"conv_params": [(7, (8, 8)), (33, (8, 8))]}, "conv_params must be"),
    ],
)
def test_bad_configuration(config, message):
    with pytest.raises(ValueError, match=message):
        models.build("particlenet_lite", **config)


@pytest.mark.parametrize("jets", [0, 2])
def test_training_on_no_constituents(jets):
    """Nothing is learned, and scores are finite afterwards."""
    model = models.build("particlenet_lite", use_fusion=True).double().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x, points, _ = padded_jets((5, 3))
    empty = ragged(x[:jets], points[:jets], torch.zeros(jets, x.shape[1]) > 0)
    assert model(empty).shape == (jets, 2)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    x, points, mask = padded_jets((5, 3))
    assert model.eval()(ragged(x, points, mask)).isfinite().all()


@pytest.mark.parametrize("config", [{}, {"bn_stats": ("padded", 205)}])
def test_norms_in_evaluation_mode_stay_frozen(config):
    model = randomised(**config, use_fusion=True).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    inputs = ragged(*padded_jets(COUNTS, 205))
    found = model(inputs)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    torch.testing.assert_close(found, model.eval()(inputs), rtol=1e-12, atol=1e-12)
