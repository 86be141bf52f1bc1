"""Each tagger against an independent, padded, plain torch version in float64, gradients included."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fasttag import CheckpointError, Jets, models
from fasttag_kernels.kinematics.reference import kinematics
from fasttag_kernels.pixelate.reference import pixelate

PARAMETERS = {"pfn": 82_458, "efn": 82_358, "cnn": 609_666}


def build(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = models.build(name).double()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at zero, where a forgotten bias would not show
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def padded_energy_flow(jets: Jets) -> tuple[torch.Tensor, torch.Tensor]:
    """(z, y - y_J, phi - phi_J) of padded four-vectors, straight from the definition."""
    p4, valid = (torch.from_numpy(a) for a in jets.astype("float64").to_padded(90))
    px, py, pz, e = p4.unbind(2)
    pt = torch.hypot(px, py)
    z = pt / pt.sum(1, keepdim=True)
    m2 = ((e + pz) * (e - pz) - pt**2).clamp(min=0)
    y = torch.sign(pz) * torch.log((e + pz.abs()) / torch.sqrt(pt**2 + m2)).nan_to_num(0)
    phi = torch.atan2(py, px)
    dphi = torch.remainder(phi - phi[:, :1] + math.pi, 2 * math.pi) - math.pi
    centred = [a - (z * a).sum(1, keepdim=True) for a in (y, dphi)]
    return torch.stack([z, *centred], 2) * valid[..., None], valid


def plain_image(jets: Jets) -> tuple[torch.Tensor, None]:
    pt, _, eta, phi, _ = kinematics(jets.p4)
    return torch.from_numpy(pixelate(pt, eta, phi, jets.offsets)), None


def dense(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    for linear in model[:-1:2]:
        x = torch.relu(x @ linear.weight.T + linear.bias)
    return x @ model[-1].weight.T + model[-1].bias


def plain_pfn(model: nn.Module, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return dense(model.f, (torch.relu(dense(model.phi, x)) * valid[..., None]).sum(1))


def plain_efn(model: nn.Module, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return dense(model.f, (x[..., :1] * torch.relu(dense(model.phi, x[..., 1:]))).sum(1))


def plain_cnn(model: nn.Module, images: torch.Tensor, valid: None) -> torch.Tensor:
    x = images
    convs = [layer for layer in model.maps if isinstance(layer, nn.Conv2d)]
    for i, conv in enumerate(convs):
        patches = nn.functional.unfold(x, 4, padding=1)
        x = conv.weight.flatten(1) @ patches + conv.bias[:, None]
        x = torch.relu(x).unflatten(2, (math.isqrt(x.shape[2]),) * 2)
        if i % 2:
            half = x.shape[2] // 2
            x = x[..., : 2 * half, : 2 * half].unflatten(3, (half, 2)).unflatten(2, (half, 2)).amax((3, 5))
    return dense(model.head, x.flatten(1))


PLAIN = {"pfn": plain_pfn, "efn": plain_efn, "cnn": plain_cnn}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    assert sum(p.numel() for p in models.build(name).parameters()) == PARAMETERS[name]


def test_every_tagger_is_tested():
    here = Path(__file__).parent
    elsewhere = {name for name in models.available() if (here / f"test_{name.removesuffix('_lite')}.py").exists()}
    assert set(PARAMETERS) == set(PLAIN) == set(models.available()) - elsewhere


@pytest.mark.parametrize("name", PARAMETERS)
def test_equals_plain_padded_torch(name, jets64):
    model = build(name)
    jets = jets64[:8] if name == "cnn" else jets64
    target = torch.from_numpy(jets.labels["label"])
    logits = model(jets)
    nn.functional.cross_entropy(logits, target).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = PLAIN[name](model, *(plain_image if name == "cnn" else padded_energy_flow)(jets))
    nn.functional.cross_entropy(expected, target).backward()
    assert (logits - expected).abs().max() < 1e-10 * expected.abs().max()
    largest = max(p.grad.abs().max() for p in model.parameters())
    for mine, parameter in zip(gradients, model.parameters(), strict=True):
        assert (mine - parameter.grad).abs().max() < 1e-10 * largest


@pytest.fixture(params=[1, 2])
def torch_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PARAMETERS)
def test_inference_equals_training_forward(name, jets64, torch_threads):
    model = build(name)
    jets = Jets.concatenate([jets64] * (1 if name == "cnn" else 3))  # with one thread: several blocks of constituents
    scores = models.score(model, jets, batch_size=100)
    expected = model(jets).softmax(1)[:, 1].detach().numpy()
    assert np.abs(scores - expected).max() < 1e-6  # scores are float32


@pytest.mark.parametrize("name", ["pfn", "efn"])
def test_gradient_in_p4(name, jets64):
    model = build(name)
    jets = jets64[2:5].compact().astype("float64").to(library="torch")
    p4 = jets.p4.clone()
    p4[3] *= 1.02  # massive: away from the clamp of m^2, where the rapidity has a kink
    p4.requires_grad_(True)
    model(Jets(p4, jets.offsets))[:, 1].sum().backward()
    for i, j in ((0, 0), (1, 7), (2, 3), (3, 30)):
        step = torch.zeros_like(p4)
        step[i, j] = 1e-4
        with torch.no_grad():
            up, down = (float(model(Jets(p4 + s, jets.offsets))[:, 1].sum()) for s in (step, -step))
        assert math.isclose(float(p4.grad[i, j]), (up - down) / 2e-4, rel_tol=1e-5, abs_tol=1e-9)


def split_collinearly(jets: Jets) -> Jets:
    """Every constituent in two parts of 30% and 70%."""
    jets = jets.compact()
    parts = np.concatenate([0.3 * jets.p4[:, :, None], 0.7 * jets.p4[:, :, None]], 2).reshape(4, -1)
    return Jets(parts, 2 * jets.offsets)


def test_efn_is_collinear_safe_and_pfn_is_not(jets64):
    jets = jets64.astype("float64")
    efn, pfn = build("efn"), build("pfn")
    with torch.no_grad():
        assert (efn(jets) - efn(split_collinearly(jets))).abs().max() < 1e-10
        assert (pfn(jets) - pfn(split_collinearly(jets))).abs().max() > 0.1


def with_constituent(jets: Jets, p4: list[float], first: bool) -> Jets:
    """One more in every jet, before or behind the others."""
    where = jets.offsets[:-1] if first else jets.offsets[1:]
    return Jets(np.insert(jets.p4, where, np.array(p4)[:, None], axis=1), jets.offsets + np.arange(len(jets) + 1))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("p4", [[0, 0, 0, 0], [0, 0, 700, 700], [0, 0, -3, 3], [0, 0, 3, 5]], ids=str)
@pytest.mark.parametrize("name", PARAMETERS)
def test_constituent_without_pt(name, p4, first, jets64):
    model = build(name)
    jets = jets64[:8].compact().astype("float64")
    hidden = []
    layer = model.head if name == "cnn" else model.f
    layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    with torch.no_grad():
        model(jets)
        model(with_constituent(jets, p4, first))
        added = torch.relu(dense(model.phi, torch.zeros(3).double())) if name == "pfn" else 0  # Phi(0, 0, 0)
    assert (hidden[1] - hidden[0] - added).abs().max() < 1e-9


@pytest.mark.parametrize("name", PARAMETERS)
def test_nan_gives_nan(name, jets64):
    jets = jets64[:4].compact()
    model = models.build(name)
    expected = models.score(model, jets)
    for bad in (np.nan, np.inf):
        for row in range(4):
            p4 = jets.p4.copy()
            p4[row, jets.offsets[1] + 2] = bad
            scores = models.score(model, Jets(p4, jets.offsets))
            assert np.isnan(scores).tolist() == [False, True, False, False]
            np.testing.assert_allclose(scores[[0, 2, 3]], expected[[0, 2, 3]], rtol=1e-5)


def test_score_errors(jets64):
    with pytest.raises(ValueError, match="score: batch_size must be 1 or more, got 0"):
        models.score(models.build("pfn"), jets64, batch_size=0)


def test_score_leaves_the_mode_alone(jets64):
    model = models.build("pfn")
    for training in (True, False):
        models.score(model.train(training), jets64)
        assert model.training is training
    model.train()
    model.phi.eval()
    models.score(model, jets64)
    assert model.training and model.f.training and not any(module.training for module in model.phi.modules())


@pytest.mark.parametrize("name", PARAMETERS)
def test_symmetries(name, jets64):
    model = build(name)
    jets = jets64[:8].compact().astype("float64")
    order = np.concatenate(
        [np.random.default_rng(j).permutation(n) + a for j, (a, n) in enumerate(zip(jets.offsets, jets.counts))]
    )
    angle = 2.1
    turned = jets.p4.copy()
    turned[0] = math.cos(angle) * jets.p4[0] - math.sin(angle) * jets.p4[1]
    turned[1] = math.sin(angle) * jets.p4[0] + math.cos(angle) * jets.p4[1]
    with torch.no_grad():
        logits = model(jets)
        assert (logits - model(Jets(jets.p4.take(order, axis=1), jets.offsets))).abs().max() < 1e-9
        assert (logits - model(Jets(turned, jets.offsets))).abs().max() < 1e-6  # m^2 of massless particles is rounding


@pytest.mark.parametrize("name", PARAMETERS)
def test_empty_jets_and_no_jets(name):
    model = models.build(name)
    none = Jets(np.zeros((4, 0), np.float32), np.array([0]))
    empty = Jets(np.zeros((4, 0), np.float32), np.array([0, 0, 0]))
    assert models.score(model, none).shape == (0,)
    scores = models.score(model, empty)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", PARAMETERS)
def test_save_and_load(name, jets64, tmp_path):
    model = models.build(name, classes=["QCD", "W", "top"], signal=2)
    models.save(model, tmp_path / "model.safetensors")
    loaded = models.load(tmp_path / "model.safetensors")
    assert (loaded.classes, loaded.signal, loaded.name) == (("QCD", "W", "top"), 2, name)
    np.testing.assert_array_equal(models.score(loaded, jets64[:4]), models.score(model, jets64[:4]))
    again = models.load(model.state_dict(), name=name, classes=["QCD", "W", "top"], signal=2)
    np.testing.assert_array_equal(models.score(again, jets64[:4]), models.score(model, jets64[:4]))


def test_load_errors(tmp_path):
    model = models.build("pfn")
    with pytest.raises(CheckpointError, match="must come with name, classes and signal"):
        models.load(model.state_dict(), name="pfn")
    with pytest.raises(CheckpointError, match="does not fit model efn"):
        models.load(model.state_dict(), name="efn", classes=["QCD", "top"], signal=1)
    for config in ({"phi": []}, {"phi": 3}, {"phi": {1: 2}}, {"f": [object()]}):
        with pytest.raises(CheckpointError, match="does not fit model pfn"):
            models.load(model.state_dict(), name="pfn", classes=["QCD", "top"], signal=1, **config)
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        models.load(path)
    models.save(model, path)
    with pytest.raises(CheckpointError, match="holds a pfn, asked for efn"):
        models.load(path, name="efn")
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[:-1], b"\xff" * 64, whole[:8] + b"x" * 100 + whole[108:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            models.load(path)
    from safetensors.torch import save_file

    save_file(dict(model.state_dict()), path)
    with pytest.raises(CheckpointError, match="no description of the model"):
        models.load(path)


def test_save_needs_a_model_made_by_name(tmp_path):
    from fasttag.models.pfn import PFN

    with pytest.raises(ValueError, match=r"save: model must come from models\.build, got PFN made directly"):
        models.save(PFN(), tmp_path / "model.safetensors")


def test_build_errors():
    with pytest.raises(ValueError, match=r"name must be one of cnn, efn, .*, pfn, got 'resnet'"):
        models.build("resnet")
    with pytest.raises(ValueError, match="signal must index classes"):
        models.build("pfn", signal=2)
    for signal in (True, 1.0, "top"):
        with pytest.raises(TypeError, match="PFN: signal must be an integer, got"):
            models.build("pfn", signal=signal)
    for classes in ("QCD", 2, (0, 1)):
        with pytest.raises(TypeError, match="PFN: classes must be"):
            models.build("pfn", classes=classes, signal=0)
    for classes in ((), ("top",), ("top", "top")):
        with pytest.raises(ValueError, match="PFN: classes must be 2 or more different names"):
            models.build("pfn", classes=classes, signal=0)


@pytest.mark.parametrize("name", ["particle_transformer", "particlenet_lite", "pfn"])
def test_inputs_of_another_kind_are_refused(name, jets64):
    model = models.build(name).eval()
    for jets, found in ((jets64, "ndarray"), (jets64.to(library="torch").astype("float64"), "torch.float64")):
        with pytest.raises(
            TypeError, match=f"x of Inputs must be a torch tensor of the weights' torch.float32, got {found}"
        ):
            model(model.recipe(jets[:2]))
    assert model(model.recipe(jets64[:2].to(library="torch").astype("float32"))).shape == (2, 2)
