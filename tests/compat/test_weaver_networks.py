"""compat.weaver's networks: padded calls against weaver's numbers, stored and live, and against packed calls."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import fasttag
from children import peer
from fasttag import models
from fasttag.compat import weaver, weaver_part, weaver_particlenet
from fasttag.compat.weaver import ParticleNet, ParticleTransformer
from fasttag.features import Inputs
from fasttag.models import particle_transformer

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
SMALL = {"num_layers": 2, "embed_dims": (16, 24, 32), "pair_embed_dims": (12, 8), "num_heads": 4}


def padded_jets(seed: int = 4, columns: int = 7) -> tuple[torch.Tensor, ...]:
    """x (B, C, P), points, p4 and mask, float64, as weaver's loader gives them, but real places anywhere."""
    rng = np.random.default_rng(seed)
    shape = (6, 1, 24)
    pt, eta, phi = rng.exponential(12.0, shape) + 0.1, rng.normal(0.4, 0.3, shape), rng.normal(3.0, 0.3, shape)
    p4 = np.concatenate([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), np.hypot(pt * np.cosh(eta), 5.0)], 1)
    mask = rng.random(shape) < rng.random((6, 1, 1))
    mask[0], mask[1, 0, 0] = True, True
    x = rng.normal(size=(6, columns, 24))
    return tuple(torch.from_numpy(a) for a in (x, np.concatenate([eta, phi], 1), p4, mask.astype(float)))


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Nothing at its initial value, where what is forgotten would not show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
                tensor.add_(0.3 * (noise.abs() if name.endswith("_var") else noise))
    return model.double()


def golden(name: str) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Configuration, state dict and float64 inputs of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as f, np.load(GOLDEN / "model_inputs.npz") as given:
        state = {key[6:]: torch.from_numpy(f[key]) for key in f.files if key.startswith("state/")}
        inputs = {key: torch.from_numpy(given[key]) for key in given.files}
        config = json.loads(str(f["config"]))
    return config, state, {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def stored(name: str, key: str) -> torch.Tensor:
    with np.load(GOLDEN / f"{name}.npz") as f:
        return torch.from_numpy(f[key])


@pytest.mark.shared
def test_part_golden_logits():
    config, state, given = golden("part_weaver")
    model = ParticleTransformer(**config)
    model.load_state_dict(state)
    model.double().eval()
    found = model(given["features"], v=given["vectors_pxpypze"], mask=given["mask"])
    torch.testing.assert_close(found, stored("part_weaver", "logits_eval_float64"), rtol=1e-9, atol=1e-9)


@pytest.mark.shared
def test_part_golden_training():
    config, state, given = golden("part_weaver")
    model = ParticleTransformer(**config)
    model.load_state_dict(state)
    model.double().train()
    logits = model(given["features"], v=given["vectors_pxpypze"], mask=given["mask"])
    torch.testing.assert_close(
        logits.detach(), stored("part_weaver_float64", "logits_train_float64"), rtol=1e-9, atol=1e-9
    )
    cross_entropy(logits, given["label"].long()).backward()
    for key in ("fc.0.bias", "embed.input_bn.weight", "pair_embed.embed.0.weight", "cls_token"):
        expected = stored("part_weaver_float64", f"grad_float64/{key}")
        found = dict(model.named_parameters())[key].grad.reshape(expected.shape)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    for key in ("embed.input_bn.running_mean", "embed.input_bn.running_var", "pair_embed.embed.11.running_var"):
        found, expected = dict(model.named_buffers())[key], stored("part_weaver_float64", f"buffer_after_float64/{key}")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.shared
def test_particlenet_golden_logits():
    config, state, given = golden("particlenet_weaver")
    model = ParticleNet(**config)
    model.load_state_dict(state)
    model.double().eval()
    found = model(given["points"], given["features"], given["mask"])
    # where neighbours are equally far, duplicates of the point itself among them, weaver takes any
    real, near = given["mask"][:, 0], stored("particlenet_weaver_float64", "knn_eval_float64/0").long()
    same = [
        torch.equal(weaver.knn(points[None, :, there], 8)[0].sort()[0], theirs[there].sort()[0])
        for points, there, theirs in zip(given["points"], real, near)
    ]
    assert sum(same) > 50
    expected = stored("particlenet_weaver", "logits_eval_float64")
    torch.testing.assert_close(found[same], expected[same], rtol=1e-9, atol=1e-9)


def test_part_packs_what_the_mask_says():
    """Padded places do not matter, wherever they are, and gradients reach all real ones and nothing else."""
    x, _, p4, mask = padded_jets()
    model = shaken(ParticleTransformer(7, 3, **SMALL)).eval()
    real = mask[:, 0].bool()
    x.requires_grad_()
    found = model(x, p4, mask)
    assert found.shape == (6, 3)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.abs().sum(1)[real].min() > 0 and not gradient.abs().sum(1)[~real].any()
    for jet, there in enumerate(real):
        alone = model(x[jet : jet + 1, :, there], p4[jet : jet + 1, :, there])
        torch.testing.assert_close(alone, found[jet : jet + 1], rtol=1e-10, atol=1e-10)
    assert model(x[:0], p4[:0], mask[:0]).shape == (0, 3)


@pytest.mark.parametrize("training", [False, True])
def test_part_extra_pair_inputs(training):
    """All of uu, and some of its pairs by their places, against the packed call with pairs set down one by one."""
    x, _, p4, mask = padded_jets()
    rng = np.random.default_rng(5)
    pairs, length = 40, mask.shape[2]
    values = rng.normal(size=(len(x), 2, pairs))
    places = rng.integers(0, length + 3, (len(x), 2, pairs))
    places[:, :, 1] = places[:, :, 0]  # twice the same pair
    model = shaken(ParticleTransformer(7, 2, pair_extra_dim=2, **SMALL, block_params=dict.fromkeys(RATES, 0.0)))
    model.train(training)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense = np.zeros((len(x), 2, length + 3, length + 3))
    for jet in range(len(x)):
        for pair in range(pairs):
            i, j = places[jet, :, pair]
            dense[jet, :, i, j] += values[jet, :, pair]
    dense = dense[:, :, :length, :length]
    real = mask[:, 0].bool()
    rows = [
        dense[jet, :, i, j]
        for jet, there in enumerate(real)
        for i in np.flatnonzero(there)
        for j in np.flatnonzero(there)
    ]
    host = np.concatenate([[0], np.cumsum(real.sum(1).numpy())])
    tokens = model.embed.input_bn(x).mT[real]
    inputs = Inputs(tokens, tokens, p4.mT[real].T.contiguous(), torch.from_numpy(host), host, length)
    expected = particle_transformer.ParticleTransformer.forward(model, inputs, torch.from_numpy(np.stack(rows)))
    for uu, places_of_uu in (
        (torch.from_numpy(dense), None),
        (torch.from_numpy(values), torch.from_numpy(places)),
    ):
        model.load_state_dict(state)
        found = model(x, p4, mask, uu, places_of_uu)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


RATES = ("dropout", "attn_dropout", "activation_dropout")


def test_part_dropout_rates_are_weavers():
    model = ParticleTransformer(7, 2, **SMALL, cls_block_params={"dropout": 0.2, "activation_dropout": 0.3})
    assert {(b.dropout, b.attn_dropout, b.activation_dropout) for b in model.blocks} == {(0.1, 0.1, 0.1)}
    assert {(b.dropout, b.attn_dropout, b.activation_dropout) for b in model.cls_blocks} == {(0.2, 0.0, 0.3)}
    model = ParticleTransformer(7, 2, **SMALL, block_params={"attn_dropout": 0.4, "ffn_ratio": 4})
    assert {(b.dropout, b.attn_dropout, b.activation_dropout) for b in model.blocks} == {(0.1, 0.4, 0.1)}


def test_part_without_a_head_and_for_inference():
    x, _, p4, mask = padded_jets(columns=19)
    model = shaken(ParticleTransformer(19, 4, **SMALL, fc_params=[(10, 0.1), (9, 0.0, "relu")])).eval()
    features = ParticleTransformer(19, **SMALL, fc_params=None).double().eval()
    assert not any(key.startswith("fc") for key in features.state_dict())
    features.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc")})
    logits = model(x, p4, mask)
    torch.testing.assert_close(model.fc(features(x, p4, mask)), logits)
    scores = ParticleTransformer(19, 4, **SMALL, fc_params=[(10, 0.1), (9, 0.0)], for_inference=True).double().eval()
    scores.load_state_dict(model.state_dict())
    torch.testing.assert_close(scores(x, p4, mask), logits.softmax(1))


def test_part_takes_checkpoints_of_weaver_0_4():
    model = shaken(ParticleTransformer(7, 2, **SMALL))
    old = {key.replace("in_proj.", "in_proj_"): value for key, value in model.state_dict().items()}
    assert set(old) != set(model.state_dict())
    other = torch.nn.ModuleDict({"mod": ParticleTransformer(7, 2, **SMALL).double()})
    other.load_state_dict({"mod." + key: value for key, value in old.items()})
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other["mod"].state_dict().items())


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"version": 2}, NotImplementedError, "version must be 1, got 2"),
        ({"pair_input_dim": 6}, NotImplementedError, "pair_input_dim must be None, got 6"),
        ({"use_amp": True}, NotImplementedError, "use_amp must be False, got True"),
        ({"activation": "relu"}, NotImplementedError, "activation must be 'gelu', got 'relu'"),
        ({"block_params": {"scale_fc": False}}, NotImplementedError, "scale_fc must be True, got False"),
        ({"cls_block_params": {"scale_heads": False}}, NotImplementedError, "scale_heads must be True, got False"),
        ({"fc_params": [(8, 0.1, "gelu")]}, NotImplementedError, "activation in fc_params must be 'relu', got 'gelu'"),
        ({"num_cls_layers": 0}, NotImplementedError, "num_cls_layers"),
        ({"embed_dims": []}, NotImplementedError, "embed_dims"),
        ({"pair_embed_dims": None}, NotImplementedError, "pair_embed_dims"),
        ({"remove_self_pair": True, "pair_extra_dim": 2}, NotImplementedError, "remove_self_pair"),
        ({"layers": 2}, TypeError, "layers must be an argument of weaver-core 0.5, got 2"),
    ],
)
def test_part_refusals(config, error, message):
    with pytest.raises(error, match=message):
        ParticleTransformer(7, 2, **config)


def test_part_takes_every_argument_at_its_default():
    defaults = {
        "pair_input_type": "pp",
        "pair_input_dim": 4,
        "use_conv_embed": False,
        "block_ids_with_attn_mask": None,
        "include_global_token": False,
        "activation": "gelu",
        "version": 1,
        "weight_init": "moco",
        "fix_init": True,
        "trim": True,
        "for_segmentation": False,
        "use_amp": False,
        "compile_model": False,
    }
    ParticleTransformer(input_dim=7, num_classes=2, **SMALL, **defaults)


def test_arguments_come_in_weavers_order():
    model = ParticleTransformer(7, 2, "pp", 4, 3, False, False, False, (16, 32), (8,), None, 4, 1)
    assert (model.pair_extra_dim, model.pair_embed.options["last_activation"], len(model.blocks)) == (3, True, 1)
    model = ParticleNet(7, 2, [(3, (8, 8))], [(9, 0.1)], False, False, True, False, True, False)
    assert not hasattr(model, "bn_fts") and not model.trim and model.softmax
    with pytest.raises(NotImplementedError, match="pair_input_type must be 'pp', got 'ps'"):
        ParticleTransformer(7, 2, "ps")


def test_one_output_is_enough():
    x, points, _, mask = padded_jets()
    assert ParticleNet(7, 1).double()(points, x, mask).shape == (len(x), 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_of_torch_is_refused(tmp_path):
    x, points, p4, mask = padded_jets()
    cases = [(ParticleTransformer(7, 2, **SMALL), (x, p4, mask)), (ParticleNet(7, 2), (points, x, mask))]
    for model, arguments in cases:
        with pytest.raises(
            NotImplementedError, match=r"forward must be run, .* write the graph by fasttag.models.export"
        ):
            torch.onnx.export(model.double().eval(), arguments, tmp_path / "x.onnx", dynamo=False)


def test_part_wants_classes_for_a_head():
    with pytest.raises(ValueError, match="num_classes must be a number, got None"):
        ParticleTransformer(7, **SMALL)


def test_part_wants_four_vectors_and_places_above_zero():
    x, _, p4, mask = padded_jets()
    with pytest.raises(ValueError, match="v must be four-vectors"):
        ParticleTransformer(7, 2, **SMALL)(x, mask=mask)
    model = ParticleTransformer(7, 2, pair_extra_dim=1, **SMALL).double()
    with pytest.raises(ValueError, match="uu_idx must be 0 or more, got -1"):
        model(x, p4, mask, torch.zeros(6, 1, 3), torch.full((6, 2, 3), -1))


PEER = """
import torch
from weaver.nn.model.{network} import {network}
config = {config}
model = {network}(**config)
model.load_state_dict(torch.load("{folder}/ours.pt"))  # strict
model.double().eval()
with torch.no_grad():
    result = [model(*[torch.from_numpy(a) for a in ({arguments})]).numpy()]
torch.save({network}(**config).state_dict(), "{folder}/theirs.pt")
"""


def agree(ours: torch.nn.Module, config: dict, arguments: dict[str, torch.Tensor], folder: Path) -> None:
    """State dicts load strictly both ways, and logits agree."""
    torch.save(ours.state_dict(), folder / "ours.pt")
    code = PEER.format(network=type(ours).__name__, config=config, folder=folder, arguments=", ".join(arguments) + ",")
    (expected,) = peer(code, folder, **{name: value.numpy() for name, value in arguments.items()})
    with torch.no_grad():
        found = ours.eval()(*arguments.values())
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
    ours.load_state_dict(torch.load(folder / "theirs.pt"))
    assert list(ours.state_dict()) and set(ours.state_dict()) == set(torch.load(folder / "theirs.pt"))


@pytest.mark.peers
@pytest.mark.parametrize(
    "config",
    [
        {"input_dim": 7, "num_classes": 2, **SMALL},
        {
            "input_dim": 19,
            "num_classes": 10,
            **SMALL,
            "use_pre_activation_pair": False,
            "remove_self_pair": True,
            "fc_params": [(8, 0.1)],
            "for_inference": True,
        },
        {"input_dim": 7, "fc_params": None, **SMALL},
        {"input_dim": 7, "num_classes": 3, "pair_extra_dim": 2, **SMALL},
    ],
)
def test_part_is_weavers(config, tmp_path):
    x, _, p4, mask = padded_jets(columns=config["input_dim"])
    arguments = {"x": x, "v": p4, "mask": mask.bool()}
    if "pair_extra_dim" in config:
        rng = np.random.default_rng(6)
        arguments["uu"] = torch.from_numpy(rng.normal(size=(6, 2, 50)))
        arguments["uu_idx"] = torch.from_numpy(rng.integers(0, 26, (6, 2, 50)))
    agree(shaken(ParticleTransformer(**config)), config, arguments, tmp_path)


TINY = {"conv_params": [(5, (8, 8)), (4, (12, 12, 12))], "fc_params": [(10, 0.1)]}


def test_particlenet_packs_what_the_mask_says():
    """As for Particle Transformer."""
    x, points, _, mask = padded_jets()
    model = shaken(ParticleNet(7, 3, **TINY)).eval()
    real = mask[:, 0].bool()
    x.requires_grad_()
    found = model(points, x, mask)
    assert found.shape == (6, 3)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.abs().sum(1)[real].min() > 0 and not gradient.abs().sum(1)[~real].any()
    for jet, there in enumerate(real):
        alone = model(points[jet : jet + 1, :, there], x[jet : jet + 1, :, there])
        torch.testing.assert_close(alone, found[jet : jet + 1], rtol=1e-10, atol=1e-10)
    assert model(points[:0], x[:0], mask[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"for_segmentation": True}, NotImplementedError, "for_segmentation must be False, got True"),
        ({"use_amp": True}, NotImplementedError, "use_amp must be False, got True"),
        ({"compile_model": True}, NotImplementedError, "compile_model must be False, got True"),
        ({"k": 16}, TypeError, "k must be an argument of weaver-core 0.5, got 16"),
    ],
)
def test_particlenet_refusals(options, error, message):
    with pytest.raises(error, match=message):
        ParticleNet(7, 2, **options)


@pytest.mark.peers
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_fusion": False, "for_inference": True, **TINY},
        {"use_fts_bn": False, "use_counts": False, "trim": False, **TINY},
    ],
)
def test_particlenet_is_weavers(options, tmp_path):
    x, points, _, mask = padded_jets(columns=9)
    config = {"input_dims": 9, "num_classes": 3, **options}
    if not options.get("use_fts_bn", True):
        x = x * mask  # weaver lets padding through there
    arguments = {"points": points, "features": x, "mask": mask.bool()}
    agree(shaken(ParticleNet(**config)), config, arguments, tmp_path)


STEPS = """
import torch
from weaver.nn.model.{network} import {network}
torch.manual_seed(1)
model = {network}(**{config})
torch.save(model.state_dict(), "{folder}/before.pt")
model.double().train()
optimiser = torch.optim.SGD(model.parameters(), 0.1)
losses = []
for _ in range(4):
    logits = model(*[torch.from_numpy(a) for a in ({arguments},)])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(label))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
result = [np.array(losses)]
torch.save(model.state_dict(), "{folder}/after.pt")
"""


@pytest.mark.peers
@pytest.mark.parametrize("network", [ParticleTransformer, ParticleNet])
def test_training_is_weavers(network, tmp_path):
    """Four steps: losses, weights and running statistics, of jets padded with copies, as weaver pads them."""
    x, points, p4, mask = padded_jets()
    if network is ParticleTransformer:
        config = {"input_dim": 7, "num_classes": 2, **SMALL, "block_params": dict.fromkeys(RATES, 0.0), "trim": False}
        arguments = {"x": x, "v": p4, "mask": mask.bool()}
    else:
        config = {"input_dims": 7, "num_classes": 2, **TINY, "fc_params": [(10, 0.0)], "trim": False}
        pad = lambda a: torch.cat([a, a[:, :, :8]], 2)  # more padding than neighbours
        arguments = {"points": pad(points), "features": pad(x), "mask": torch.cat([mask, mask[:, :, :8] * 0], 2).bool()}
    label = torch.tensor([0, 1, 1, 0, 1, 0])
    code = STEPS.format(network=network.__name__, config=config, folder=tmp_path, arguments=", ".join(arguments))
    given = {name: value.numpy() for name, value in arguments.items()}
    (expected,) = peer(code, tmp_path, label=label.numpy(), **given)
    model = network(**config)
    model.load_state_dict(torch.load(tmp_path / "before.pt"))
    model.double().train()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for wanted in expected:
        loss = cross_entropy(model(*arguments.values()), label)
        assert loss.item() == pytest.approx(wanted, rel=1e-9)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, value in torch.load(tmp_path / "after.pt").items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-8, atol=1e-8)


NAMES = ("pf_points", "pf_features", "pf_vectors", "pf_mask")
DATA_CONFIG = SimpleNamespace(  # what a network file looks at of weaver's
    input_names=NAMES,
    input_shapes={name: (-1, rows, 24) for name, rows in zip(NAMES, (2, 5, 4, 1))},
    input_dicts={"pf_features": list("abcde")},
    label_value=["QCD", "W", "top"],
)


@pytest.mark.parametrize("file", [weaver_part, weaver_particlenet])
def test_network_files(file, monkeypatch):
    """Inputs in the order and of the shapes that they say, sizes from the data configuration, threads from torch."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    threads = fasttag.get_threads()
    try:
        options = SMALL if file is weaver_part else TINY
        model, info = file.get_model(DATA_CONFIG, **options)
        assert fasttag.get_threads() == 2
    finally:
        fasttag.set_threads(threads)
    x, points, p4, mask = (a.float() for a in padded_jets(columns=5))
    given = dict(zip(NAMES, (points, x, p4, mask)))
    assert info["input_names"] == list(given)
    for batch in (given, {name: torch.ones(info["input_shapes"][name]) for name in info["input_names"]}):
        logits = model(*batch.values())
        assert logits.shape == (len(batch["pf_mask"]), 3)
    label = torch.zeros(1, dtype=torch.long)
    assert torch.equal(file.get_loss(DATA_CONFIG)(logits, label), cross_entropy(logits, label))
    assert all(key.startswith("mod.") for key in model.state_dict())
    if file is weaver_part:
        assert model.no_weight_decay() <= set(dict(model.named_parameters()))


def test_models_of_ones_own_columns_take_inputs():
    """What the networks here rest on: a number of columns in place of a recipe."""
    jets = fasttag.Jets(np.ones((4, 3), np.float32), np.array([0, 3]))
    with pytest.raises(TypeError, match="jets must be Inputs, as inputs is a number of columns, got Jets"):
        models.build("particle_transformer", inputs=5, **SMALL)(jets)
    with pytest.raises(ValueError, match="or a number of columns, got 0"):
        models.build("particle_transformer", inputs=0, **SMALL)
