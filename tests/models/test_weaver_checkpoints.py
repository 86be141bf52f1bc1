"""weaver-core's checkpoints: every form they come in, what the shapes tell, and back again into weaver itself."""

from __future__ import annotations

import io
import json
import os
import struct

import numpy as np
import pytest
import torch

from children import peer
from fasttag import CheckpointError, Jets, metrics, models
from fasttag.features import Inputs, kin
from fasttag.models import _weaver
from toys import toy_jets

JETCLASS = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
TOP = {"classes": ("top", "QCD"), "signal": 0}
WIDE = ((16, (64, 64, 64)), (16, (128, 128, 128)), (16, (256, 256, 256)))
LITE = ((7, (32, 32, 32)), (7, (64, 64, 64)))
# configuration that the weights tell, and that they do not
SHAPES = {
    "small ParT": (
        "particle_transformer",
        {
            "inputs": "kinpid", "embed_dims": (8, 12, 16), "pair_embed_dims": (6, 5), "num_heads": 4, "num_layers": 3,
            "num_cls_layers": 1, "fc_params": ((9, 0.1), (7, 0.1)), "pair_extra_dim": 0,
        },
        {},
    ),
    "ParT with more of pairs": (
        "particle_transformer",
        {
            "inputs": "full", "embed_dims": (16,), "pair_embed_dims": (6,), "num_heads": 2, "num_layers": 1,
            "num_cls_layers": 2, "fc_params": (), "pair_extra_dim": 3,
        },
        {"use_pre_activation_pair": True},
    ),
    "ParticleNet": (
        "particlenet",
        {"inputs": "kin", "conv_params": WIDE, "fc_params": ((256, 0.1),), "use_fusion": False, "use_fts_bn": True},
        {},
    ),
    "ParticleNet-Lite with fusion": (
        "particlenet_lite",
        {"inputs": "full", "conv_params": LITE, "fc_params": ((128, 0.1),), "use_fusion": True, "use_fts_bn": False},
        {},
    ),
    "small ParticleNet": (
        "particlenet",
        {"inputs": "kinpid", "fc_params": ((10, 0.1), (11, 0.1)), "use_fusion": True, "use_fts_bn": True},
        {"conv_params": ((5, (8, 6)), (4, (6, 12, 9)), (3, (9, 9)))},
    ),
}  # fmt: skip


def made(case, **config):
    """A tagger with weights and statistics that are all different, as a build would give it."""
    name, told, untold = SHAPES[case]
    torch.manual_seed(2)
    model = models.build(name, **told, **untold, **TOP, **config).eval()
    with torch.no_grad():
        for value in [*model.parameters(), *(b for key, b in model.named_buffers() if b.is_floating_point())]:
            value.mul_(1 + 0.1 * torch.rand_like(value)).add_(0.05 * torch.rand_like(value))
    return model


def listed(config):
    """As JSON has it: lists for tuples."""
    return json.loads(json.dumps(config))


@pytest.mark.parametrize("case", SHAPES)
def test_round_trip(case, tmp_path):
    """By a file of weaver and back: name, sizes and every tensor; through our own file nothing changes any more."""
    name, told, untold = SHAPES[case]
    ghost = {} if name == "particle_transformer" else {"missing": "ghost"}
    model = made(case, **ghost)
    models.save(model, tmp_path / "weaver.pt", format="weaver")
    state = torch.load(tmp_path / "weaver.pt", weights_only=True)
    assert {*state} == {f"mod.{key}" for key in model.state_dict()}
    loaded = models.load(tmp_path / "weaver.pt", **TOP, **untold)
    assert (loaded.name, listed(loaded.config)) == (name, listed({**told, **untold, **TOP, **ghost}))
    assert (loaded.classes, loaded.signal, loaded.training) == (TOP["classes"], 0, False)
    models.save(loaded, tmp_path / "ours.safetensors")
    again = models.load(tmp_path / "ours.safetensors")
    assert listed(again.config) == listed(loaded.config)
    for other in (loaded, again):
        assert {*other.state_dict()} == {*model.state_dict()}
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def old_generation(state):
    """nn.MultiheadAttention's names, and the trimmer's counter."""
    renamed = {key.replace("attn.in_proj.", "attn.in_proj_"): value for key, value in state.items()}
    return {f"mod.{key}": value for key, value in renamed.items()} | {"mod.trimmer._counter": torch.tensor([5])}


def fine_tuned(state):
    """The head outside: fc of Particle Transformer, only the last layer, fc_out, of ParticleNet."""
    head = "fc." if "cls_token" in state else f"fc.{max(int(key.split('.')[1]) for key in state if key[:3] == 'fc.')}."
    name = head if head == "fc." else "fc_out."
    outside = {name + key.removeprefix(head): value for key, value in state.items() if key.startswith(head)}
    return outside | {f"mod.{key}": value for key, value in state.items() if not key.startswith(head)}


FORMS = {
    "wrapped": lambda state: {f"mod.{key}": value for key, value in state.items()},
    "backwards": lambda state: {f"mod.{key}": state[key] for key in reversed(state)},
    "distributed": lambda state: {f"module.mod.{key}": value for key, value in state.items()},
    "old": old_generation,
    "old without a wrapper": lambda state: {k.removeprefix("mod."): v for k, v in old_generation(state).items()},
    "fine-tuned": fine_tuned,
    "distributed, old, fine-tuned": lambda state: {
        f"module.{key.replace('.in_proj.', '.in_proj_')}": value for key, value in fine_tuned(state).items()
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["small ParT", "small ParticleNet"])
def test_every_form(case, form, tmp_path):
    """As a file, zipped and not, and as a state dict; nothing is written into what was given."""
    model, untold = made(case), SHAPES[case][2]
    state = FORMS[form](dict(model.state_dict()))
    before = dict(state)
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "plain.pth", _use_new_zipfile_serialization=False)
    sources = [tmp_path / "zip.pt", tmp_path / "plain.pth"]
    if form != "old without a wrapper" or "cls_token" in model.state_dict():
        sources.append(state)  # without a wrapper ParticleNet's keys are ours
    for source in sources:
        loaded = models.load(source, **TOP, **untold)
        assert loaded.name == SHAPES[case][0]
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert state == before


def test_bare_state_dict_of_ours_is_taken_as_it_is():
    """Same keys as weaver's without a wrapper, but no ghosts."""
    model = models.build("particlenet_lite")
    loaded = models.load(model.state_dict(), name="particlenet_lite", classes=("QCD", "top"), signal=1)
    assert "missing" not in loaded.config


def test_what_is_given_goes_before_what_is_told():
    state = FORMS["wrapped"](made("ParticleNet").state_dict())
    loaded = models.load(state, missing="real", conv_params=[(8, (64,) * 3), (9, (128,) * 3), (10, (256,) * 3)], **TOP)
    assert loaded.missing == "real"
    assert [conv.k for conv in loaded.edge_convs] == [8, 9, 10]
    state = FORMS["wrapped"](made("small ParT").state_dict())
    with pytest.raises(CheckpointError, match="does not fit model particle_transformer"):
        models.load(state, num_layers=2, **TOP)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s, {"signal": 0}, r"must come with classes and signal, got \['signal'\]"),
        (lambda s: s, {"classes": ("top", "QCD")}, "must come with classes and signal"),
        (lambda s: s, {**TOP, "classes": JETCLASS}, "has 2 logits, got 10 classes"),
        (lambda s: s, {**TOP, "name": "particlenet"}, "is not a particlenet of weaver-core"),
        (lambda s: s, {**TOP, "name": "pfn"}, "is not a pfn of weaver-core"),
        (lambda s: {"mod.layer.weight": torch.ones(2, 2)}, TOP, "is not a Particle Transformer or ParticleNet"),
        (lambda s: {k: v for k, v in s.items() if ".fc." not in k}, TOP, "has not the layers of a particle_tr"),
        (lambda s: {k: v for k, v in s.items() if "pair_embed" not in k}, TOP, "has not the layers of a particle_tr"),
        (lambda s: {k: v for k, v in s.items() if "c_attn" not in k}, TOP, "does not fit model particle_transformer"),
        (lambda s: {**s, "mod.blocks.0.fc1_g.weight": torch.ones(2)}, TOP, "does not fit model particle_transformer"),
        (lambda s: {**s, "fc.2.bias": torch.ones(2)}, TOP, "two tensors for one name"),
        (
            lambda s: {**s, "mod.embed.input_bn.weight": torch.ones(9)},
            TOP,
            r"has 9 inputs per constituent, there is no recipe of so many \(kin 7, kinpid 13, full 17\); .*inputs=9",
        ),
    ],
)
def test_errors(change, options, message):
    state = change(FORMS["wrapped"](made("small ParT").state_dict()))
    with pytest.raises(CheckpointError, match=message):
        models.load(state, **options)


def test_columns_of_ones_own():
    """Load for Inputs, once their number is named."""
    config = {"conv_params": LITE, "missing": "ghost", **TOP}
    model = models.build("particlenet_lite", inputs=9, **config)
    state = FORMS["wrapped"](model.state_dict())
    for options in ({}, {"inputs": 8}):
        with pytest.raises(CheckpointError, match="has 9 inputs per constituent"):
            models.load(state, **TOP, **options)
    loaded = models.load(state, **TOP, inputs=9)
    assert loaded.recipe is None and loaded.name == "particlenet_lite"
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_what_does_not_fit_is_a_checkpoint_error():
    """Whatever the constructor stumbles over."""
    state = FORMS["wrapped"](made("small ParT").state_dict())
    for config in ({"embed_dims": ()}, {"num_heads": 0}, {"fc_params": 1}, {"classes": ("top", "top")}):
        with pytest.raises(CheckpointError, match="does not fit model particle_transformer"):
            models.load(state, **{**TOP, **config})


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "particlenet_lite",
            {},
            'missing must be "ghost", .* got "real"; build or load the model with missing="ghost"',
        ),
        ("particle_transformer", {"m2": "stable", "num_layers": 1}, 'm2 must be "reference", .* got "stable"'),
    ],
)
def test_what_weaver_computes_otherwise_is_not_written(name, config, message, tmp_path):
    with pytest.raises(ValueError, match=f"save: {message}"):
        models.save(models.build(name, **config), tmp_path / "x.pt", format="weaver")
    assert not (tmp_path / "x.pt").exists()


def test_neighbours_must_be_given():
    state = FORMS["wrapped"](made("small ParticleNet").state_dict())
    with pytest.raises(
        CheckpointError, match=r"neighbours is not in the weights .* give conv_params=\[\(k, \(8, 6\)\)"
    ):
        models.load(state, **TOP)


class Harmful:
    """Runs a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_run(zipped, tmp_path):
    """Neither a command, nor a whole module is unpickled."""
    for harm in (Harmful(tmp_path / "harmed"), torch.nn.Linear(2, 2)):
        torch.save({"mod.a": torch.ones(1), "b": harm}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"x\.pt: cannot be read as a checkpoint of weights only"):
            models.load(tmp_path / "x.pt", **TOP)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, [torch.ones(2)], {"model": {"a": torch.ones(1)}}, {1: torch.ones(1)}]
)
def test_no_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="must hold a state dict"):
        models.load(tmp_path / "x.pt", **TOP)


def test_damaged_files(tmp_path):
    models.save(made("small ParT"), tmp_path / "x.pt", format="weaver")
    whole = (tmp_path / "x.pt").read_bytes()
    for damaged in (whole[:4], whole[: len(whole) // 2], whole[:-1], whole[:200] + bytes(200) + whole[400:]):
        (tmp_path / "x.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            models.load(tmp_path / "x.pt", **TOP)


def test_a_safetensors_header_may_begin_like_a_pickle(tmp_path):
    """Its length is in the first eight bytes: here 0x0280, where a pickle has its protocol."""
    pickle = io.BytesIO()
    torch.save({}, pickle, _use_new_zipfile_serialization=False)
    for content, expected in ((struct.pack("<Q", 0x0280) + b"{" + b" " * 639, False), (pickle.getvalue(), True)):
        assert content[:2] == b"\x80\x02"
        (tmp_path / "x").write_bytes(content)
        assert _weaver.is_pickle(tmp_path / "x") is expected


def test_save_errors(tmp_path):
    with pytest.raises(ValueError, match=r"save: model must be one of particle_transformer, .*, got pfn"):
        models.save(models.build("pfn"), tmp_path / "x.pt", format="weaver")
    with pytest.raises(ValueError, match=r'save: format must be "fasttag" or "weaver", got "?.onnx'):
        models.save(models.build("pfn"), tmp_path / "x.pt", format="onnx")
    assert not (tmp_path / "x.pt").exists()


def golden(shared, name):
    """The file, and its state dict as a checkpoint has it."""
    with np.load(shared / "golden" / f"{name}.npz") as f:
        found = dict(f)
    return found, {f"mod.{k[6:]}": torch.from_numpy(v) for k, v in found.items() if k.startswith("state/")}


def golden_inputs(shared):
    with np.load(shared / "golden" / "model_inputs.npz") as f:
        real, counts = f["mask"][:, 0], f["mask"].sum((1, 2))
        names = ("features", "points", "vectors_pxpypze")
        x, points, p4 = (torch.from_numpy(f[name].transpose(0, 2, 1)[real]).double() for name in names)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Inputs(x, points, p4.T.contiguous(), torch.from_numpy(offsets), offsets, int(counts.max()))


@pytest.mark.shared
def test_published_particlenet(shared, tmp_path, jets64):
    """Loads from a file without a hint, gives its logits, and finds the tops."""
    found, state = golden(shared, "particlenet_jetclass_kin")
    torch.save(state, tmp_path / "ParticleNet_kin.pt")
    model = models.load(tmp_path / "ParticleNet_kin.pt", classes=JETCLASS, signal=JETCLASS.index("Tbqq"))
    assert (model.name, model.missing) == ("particlenet", "ghost")
    assert model.config["conv_params"] == list(WIDE)
    inputs = golden_inputs(shared)
    neighbours = []
    with np.load(shared / "golden" / "particlenet_jetclass_kin_knn.npz") as f:
        for block in range(3):
            rows = [row[:n] for row, n in zip(f[f"knn_float64/{block}"].astype(np.int32), np.diff(inputs.offsets_host))]
            rows = [np.where(row < len(row), row, -1) for row in rows]
            neighbours.append(torch.from_numpy(np.concatenate(rows)))
    with torch.no_grad():
        logits = model.double()(inputs, neighbours=neighbours)
    assert np.abs(logits.numpy() - found["logits_float64"]).max() < 1e-9
    assert metrics.auc(models.score(model.float(), jets64), jets64.labels["label"]) > 0.9


@pytest.mark.shared
def test_golden_particle_transformer(shared, jets64):
    found, state = golden(shared, "part_weaver")
    config = {"classes": ("QCD", "top"), "signal": 1, "use_pre_activation_pair": True}
    model = models.load(FORMS["old"]({key.removeprefix("mod."): value for key, value in state.items()}), **config)
    with torch.no_grad():
        logits = model.double()(golden_inputs(shared))
    assert np.abs(logits.numpy() - found["logits_eval_float64"]).max() < 1e-9


IN_WEAVER = """
import json
import torch
from weaver.nn.model.ParticleNet import ParticleNet
from weaver.nn.model.ParticleTransformer import ParticleTransformer

class Wrapper(torch.nn.Module):
    def __init__(self, **config):
        super().__init__()
        self.mod = (ParticleNet if "conv_params" in config else ParticleTransformer)(**config)

torch.set_grad_enabled(False)
features, points, p4, mask = (torch.from_numpy(a) for a in (features, points, p4, mask))
result = []
for path, config in json.loads(str(cases)):
    model = Wrapper(**config)
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    mod = model.double().eval().mod
    out = mod(points, features, mask) if "conv_params" in config else mod(features, p4, mask)
    result.append(out.numpy())
"""


@pytest.mark.peers
def test_weaver_loads_what_we_save(tmp_path):
    """Strictly, and with our logits; the sizes it is built with are those that we read off its file."""
    jets = toy_jets(12, 4).astype("float64")
    cases, expected = [], []
    for name, options in (
        ("particle_transformer", {"num_layers": 2, "embed_dims": (24, 16), "num_heads": 4, "fc_params": ((9, 0.1),)}),
        ("particlenet", {"conv_params": WIDE[:2], "missing": "ghost"}),
        ("particlenet_lite", {"use_fusion": True, "missing": "ghost"}),
    ):
        torch.manual_seed(1)
        ours = models.build(name, **options, **TOP)
        ours.train()(jets.astype("float32").to(library="torch"))  # moves the running statistics
        path = tmp_path / f"{name}.pt"
        models.save(ours, path, format="weaver")
        read = models.load(path, **TOP, **({"conv_params": WIDE[:2]} if name == "particlenet" else {}))
        config = {k: v for k, v in read.config.items() if k not in ("inputs", "classes", "signal", "missing")}
        size = {"input_dim" if name == "particle_transformer" else "input_dims": 7, "num_classes": 2}
        if name == "particle_transformer":
            size["use_pre_activation_pair"] = False
        cases.append((str(path), {**config, **size}))
        with torch.no_grad():
            expected.append(read.double()(jets).numpy())
    inputs = kin(jets)
    padded = lambda rows: Jets.to_padded(Jets(np.ascontiguousarray(rows), jets.offsets), 40)[0].transpose(0, 2, 1)
    fours = [inputs.x.T[:4], np.concatenate([inputs.x.T[4:], np.zeros((1, len(inputs.x)))])]
    features = np.concatenate([padded(rows) for rows in fours], 1)[:, :7]
    mask = jets.to_padded(40)[1][:, None]
    found = peer(
        IN_WEAVER,
        tmp_path,
        features=np.ascontiguousarray(features),
        points=np.ascontiguousarray(features[:, 5:]),
        p4=np.ascontiguousarray(padded(jets.p4)),
        mask=mask,
        cases=np.array(json.dumps(cases)),
    )
    for theirs, ours in zip(found, expected, strict=True):
        assert np.abs(theirs - ours).max() < 1e-9
