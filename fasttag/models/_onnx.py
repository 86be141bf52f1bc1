"""Taggers as ONNX graphs: padded jets in, packed inside, so that padding costs nothing but in attention and distances.

Coordinates are computed in float64, as our operations do, whatever the dtype of the network: its inputs then agree to
the last bit or two, and with them the neighbours and ln m^2, which magnify what differs.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, NamedTuple

import numpy as np
import onnx

from .._files import replacing
from ._graph import Graph, Value
from ._tagger import Tagger

OPSET = 17  # the first with LayerNormalization
EPS = 1e-8  # of pair features
SMALLEST = 1e-37
FAR = 1e9  # taken from the scores of keys that are not there
BN_EPS = LN_EPS = 1e-5


class Padded:
    """Between packed rows (N, C) of real constituents and padded (batch, length, C)."""

    def __init__(self, valid: Value) -> None:
        self.graph, self.valid = valid.graph, valid
        self.batch, self.length = valid.size(0), valid.size(1)
        self.rows = self.graph("Mul", self.batch, self.length)
        self.slot = self.graph.nonzero(valid.reshape(self.rows)).take(0)
        self.count = self.slot.size(0)
        self.jet = self.slot / self.length
        # the packed row of each slot that is real
        self.packed = self.graph("CumSum", valid.reshape(self.rows).cast(np.int64), self.graph.value(0, np.int64)) - 1

    def pack(self, x: Value, columns: int | Value) -> Value:
        return x.reshape(self.rows, columns).take(self.slot)

    def pad(self, x: Value, columns: int) -> Value:
        empty = self.graph.zeros(x.dtype, self.rows, columns)
        return self.graph("ScatterND", empty, self.slot.unsqueeze(1), x).reshape(self.batch, self.length, columns)

    def sum(self, x: Value, columns: int) -> Value:
        """(batch, C), over the constituents of each jet."""
        return self.pad(x, columns).sum(1)


class Inputs(NamedTuple):
    """As `features.Inputs`, packed: x (N, F), points (N, 2), p4 (N, 4)."""

    x: Value
    points: Value
    p4: Value


def export(model: Tagger, path: str | os.PathLike[str], *, opset: int | None = None) -> None:
    """See `fasttag.models.export`."""
    found = to_onnx(model, OPSET if opset is None else opset)
    with replacing(path) as part:
        onnx.save(found, part)


def to_onnx(model: Tagger, opset: int) -> onnx.ModelProto:
    """The graph in memory."""
    name = getattr(model, "name", None)
    if name not in NETWORKS:
        raise NotImplementedError(
            f"export: model must be one of {', '.join(NETWORKS)} from models.build, got {name or type(model).__name__}"
        )
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise ValueError(f"export: opset must be {OPSET} to {newest}, got {opset}; {OPSET} is what most runtimes know")
    recipe = "a number of columns" if model.recipe is None else model.recipe.__name__
    if recipe != "kin":
        raise NotImplementedError(
            f'export: inputs must be "kin", made of four-vectors alone, got "{recipe}"; the graph has no other columns'
        )
    name_of_dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if name_of_dtype not in ("float32", "float64"):
        raise TypeError(f"export: weights must be float32 or float64, got {name_of_dtype}; convert by model.float()")
    dtype = np.dtype(name_of_dtype)
    g = Graph()
    p4 = g.input("p4", dtype, ("batch", "length", 4))
    jets = Padded(g.input("valid", np.bool_, ("batch", "length")))
    inputs = kin(jets, jets.pack(p4, 4))
    logits = NETWORKS[name](jets, inputs, model)
    # NaN or inf in a jet must come out as NaN; comparisons on the way may have lost it
    logits = logits + jets.sum(inputs.p4 * 0.0, 4).sum(1, keep=True)
    g.output("probabilities", g("Softmax", logits, axis=1), ("batch", len(model.classes)))
    return g.build(opset, model=name, inputs=recipe, classes=json.dumps(model.classes), signal=str(model.signal))


def kin(jets: Padded, p4: Value) -> Inputs:
    """`features.kin`: in float64, rounded once."""
    g, jet, wide = jets.graph, jets.jet, p4.cast(np.float64)
    ln_pt, eta, phi, ln_energy = _coordinates(wide)
    jet_ln_pt, jet_eta, jet_phi, jet_ln_energy = _coordinates(jets.sum(wide, 4))
    side = g.where(jet_eta < 0.0, -1.0, g.value(1.0, np.float64))
    deta = (eta - jet_eta.take(jet)) * side.take(jet)
    dphi = phi - jet_phi.take(jet)
    dphi = dphi - 2 * math.pi * g("Floor", dphi / (2 * math.pi) + 0.5)
    columns = [
        _standard(ln_pt, 1.7, 0.7),
        _standard(ln_energy, 2.0, 0.7),
        _standard(ln_pt - jet_ln_pt.take(jet), -4.7, 0.7),
        _standard(ln_energy - jet_ln_energy.take(jet), -4.7, 0.7),
        _standard(_hypot(deta, dphi), 0.2, 4.0),
        deta,
        dphi,
    ]
    return Inputs(g.columns(*columns).cast(p4.dtype), g.columns(deta, dphi).cast(p4.dtype), p4)


def _coordinates(p4: Value) -> tuple[Value, Value, Value, Value]:
    """ln pt, eta, phi, ln E of rows of four-vectors; eta along the beam as `kinematics` gives it."""
    g = p4.graph
    px, py, pz, energy = (p4.take(q, axis=1) for q in range(4))
    pt, size = _hypot(px, py), g("Abs", pz)
    eta = g.where(pt > 0.0, g("Log", (_hypot(pt, pz) + size) / pt), 1e5)
    return g("Log", pt), g.where(pz < 0.0, -eta, eta), _angle(px, py), g("Log", energy)


def _standard(x: Value, center: float, scale: float) -> Value:
    """Clipped to +-5; what is not a number, of a four-vector of zeros, counts as 0."""
    clipped = ((x - center) * scale).maximum(-5.0).minimum(5.0)
    return x.graph.where(x.graph("IsNaN", x, dtype=np.bool_), 0.0, clipped)


def _hypot(x: Value, y: Value) -> Value:
    return x.graph("Sqrt", x * x + y * y)


def _angle(x: Value, y: Value) -> Value:
    """atan2(y, x) of float64: ONNX has only the arc tangent, in float32 for most, so one Newton step follows it."""
    g = x.graph
    r = _hypot(x, y).maximum(1e-300)
    tangent = (y / (r + g("Abs", x))).cast(np.float32)
    half = g("Atan", tangent).cast(np.float64)
    angle = 2.0 * half
    angle = g.where(x < 0.0, g.where(y < 0.0, -math.pi, y * 0.0 + math.pi) - angle, angle)
    return angle + (y * g("Cos", angle) - x * g("Sin", angle)) / r


def pair_features(p4: Value, first: Value, second: Value) -> Value:
    """ln kT, ln z, ln Delta, ln m^2 of constituents `first` and `second`, as in `fasttag.pairwise_features`."""
    g, dtype = p4.graph, p4.dtype
    wide = p4.cast(np.float64)
    px, py, pz, e = (wide.take(q, axis=1) for q in range(4))
    pt = _hypot(px, py)
    minus = (e - pz).maximum(1e-20)
    rapidity = 0.5 * g("Log", (minus + 2.0 * pz).maximum(1e-20) / minus)
    phi = _angle(px, py)
    ln_pt, pt = g("Log", pt.maximum(SMALLEST)).cast(dtype), pt.cast(dtype)

    dy = rapidity.take(first) - rapidity.take(second)
    dphi = math.pi - g("Abs", math.pi - g("Abs", phi.take(first) - phi.take(second)))
    ln_delta = 0.5 * g("Log", (dy * dy + dphi * dphi).cast(dtype).maximum(SMALLEST))
    ln_kt = ln_pt.take(first).minimum(ln_pt.take(second)) + ln_delta
    a, b = pt.take(first), pt.take(second)
    z = a.minimum(b) / (a + b).maximum(EPS)
    x, y, w, t = ((p4.take(first) + p4.take(second)).take(q, axis=1) for q in range(4))
    m2 = t * t - ((x * x + y * y) + w * w)  # weaver's order; in another one its rounding differs
    floor = math.log(EPS)
    return g.columns(ln_kt.maximum(floor), g("Log", z.maximum(EPS)), ln_delta.maximum(floor), g("Log", m2.maximum(EPS)))


class Weights(dict[str, np.ndarray]):
    """Weights of a tagger by name, in float64, and the layers they make."""

    def __init__(self, model: Tagger) -> None:
        super().__init__({name: x.detach().cpu().double().numpy() for name, x in model.state_dict().items()})

    def numbers(self, name: str) -> list[int]:
        """Of the layers of a sequence that have weights."""
        keys = (key.removeprefix(f"{name}.") for key in self if key.startswith(f"{name}."))
        return sorted({int(key.partition(".")[0]) for key in keys})

    def norm(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Batch normalisation in evaluation mode: x scale + shift."""
        scale = self[f"{name}.weight"] / np.sqrt(self[f"{name}.running_var"] + BN_EPS)
        return scale, self[f"{name}.bias"] - self[f"{name}.running_mean"] * scale

    def folded(self, name: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight (out, in) and bias of a convolution of size 1 and the batch normalisation after it."""
        scale, shift = self.norm(norm)
        weight = self[f"{name}.weight"]
        bias = self.get(f"{name}.bias", 0.0)
        return scale[:, None] * weight.reshape(weight.shape[:2]), scale * bias + shift

    def linear(self, name: str, x: Value) -> Value:
        return x.graph.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def layer_norm(self, name: str, x: Value) -> Value:
        return x.graph("LayerNormalization", x, self[f"{name}.weight"], self[f"{name}.bias"], epsilon=LN_EPS)

    def head(self, x: Value) -> Value:
        *hidden, last = self.numbers("fc")
        for i in hidden:
            x = x.graph("Relu", self.linear(f"fc.{i}.0", x))
        return self.linear(f"fc.{last}", x)


def particle_transformer(jets: Padded, inputs: Inputs, model: Any) -> Value:
    """Logits (batch, classes) of a ParticleTransformer."""
    options = model.pair_embed.options
    if model.pair_extra_dim or options["m2"] != "reference":
        raise NotImplementedError(
            'export: a Particle Transformer must have no extra inputs of pairs and m2="reference", got '
            f'pair_extra_dim={model.pair_extra_dim} and m2="{options["m2"]}"; the graph has no other'
        )
    g, weights, heads = jets.graph, Weights(model), model.blocks[0].heads
    width = weights["cls_token"].shape[2]

    scale, shift = weights.norm("embed.input_bn")
    x = inputs.x * scale + shift
    for i in weights.numbers("embed.embed")[::2]:
        x = g.gelu(weights.linear(f"embed.embed.{i + 1}", weights.layer_norm(f"embed.embed.{i}", x)))

    there = g.where(jets.valid, 0.0, g.value(-FAR, x.dtype)).unsqueeze(1, 2)
    bias = _pair_bias(jets, inputs.p4, weights, heads, options) + there
    for i in weights.numbers("blocks"):
        block = f"blocks.{i}"
        y = weights.linear(f"{block}.attn.in_proj", weights.layer_norm(f"{block}.pre_attn_norm", x))
        y = jets.pad(y, 3 * width)
        q, k, v = (_heads(y.between(c * width, (c + 1) * width, 2), width, heads) for c in range(3))
        attended = jets.pack(_attention(q, k, v, bias, width // heads), width)
        x = _after_attention(weights, block, heads, x, attended)

    cls = g("Expand", g.value(weights["cls_token"][0], x.dtype), g.shape(jets.batch, width))
    there = g.concat(g.zeros(x.dtype, jets.batch, 1, 1, 1), there, axis=3)
    for i in weights.numbers("cls_blocks"):
        block = f"cls_blocks.{i}"
        weight, offset = weights[f"{block}.attn.in_proj.weight"], weights[f"{block}.attn.in_proj.bias"]
        q = _heads(g.linear(cls, weight[:width], offset[:width]).unsqueeze(1), width, heads)
        of_token, of_constituents = (
            g.linear(weights.layer_norm(f"{block}.pre_attn_norm", rows), weight[width:], offset[width:])
            for rows in (cls, x)
        )
        y = g.concat(of_token.unsqueeze(1), jets.pad(of_constituents, 2 * width), axis=1)
        k, v = (_heads(y.between(c * width, (c + 1) * width, 2), width, heads) for c in range(2))
        attended = _attention(q, k, v, there, width // heads).reshape(jets.batch, width)
        cls = _after_attention(weights, block, heads, cls, attended)
    return weights.head(weights.layer_norm("norm", cls))


def _pair_bias(jets: Padded, p4: Value, weights: Weights, heads: int, options: dict[str, Any]) -> Value:
    """(batch, heads, length, length): of the real pairs i >= j, put in both places; 0 elsewhere."""
    g = jets.graph
    position = g.positions(jets.length)
    last = position.unsqueeze(1) + (0 if options["remove_self_pair"] else 1)
    pairs = g.nonzero(jets.valid.unsqueeze(2) & jets.valid.unsqueeze(1) & (position.unsqueeze(0) < last))
    jet, i, j = (pairs.take(q) for q in range(3))
    first, second = (jets.packed.take(jet * jets.length + k) for k in (i, j))
    scale, shift = weights.norm("pair_embed.embed.0")
    x = pair_features(p4, first, second) * scale + shift
    convolutions = weights.numbers("pair_embed.embed")[1::2]
    for n in convolutions:
        x = g.linear(x, *weights.folded(f"pair_embed.embed.{n}", f"pair_embed.embed.{n + 1}"))
        if n < convolutions[-1] or options["last_activation"]:
            x = g.gelu(x)
    bias = g.zeros(p4.dtype, jets.batch, jets.length, jets.length, heads)
    for places in (g.columns(jet, i, j), g.columns(jet, j, i)):
        bias = g("ScatterND", bias, places, x)
    return bias.transpose(0, 3, 1, 2)


def _heads(x: Value, width: int, heads: int) -> Value:
    """(batch, rows, width) -> (batch, heads, rows, width / heads)."""
    return x.graph("Reshape", x, [0, 0, heads, width // heads]).transpose(0, 2, 1, 3)


def _attention(q: Value, k: Value, v: Value, bias: Value, channels: int) -> Value:
    """(batch, rows, heads, channels)."""
    share = q.graph("Softmax", (q @ k.transpose(0, 1, 3, 2)) * (1 / math.sqrt(channels)) + bias, axis=3)
    return (share @ v).transpose(0, 2, 1, 3)


def _after_attention(weights: Weights, block: str, heads: int, x: Value, attended: Value) -> Value:
    """c_attn scales what out_proj gives, w_resid the second residual."""
    weight, offset = weights[f"{block}.attn.out_proj.weight"], weights[f"{block}.attn.out_proj.bias"]
    scale = np.repeat(weights[f"{block}.c_attn"], len(offset) // heads)
    x = x + weights.layer_norm(
        f"{block}.post_attn_norm", x.graph.linear(attended, scale[:, None] * weight, scale * offset)
    )
    t = x.graph.gelu(weights.linear(f"{block}.fc1", weights.layer_norm(f"{block}.pre_fc_norm", x)))
    return (
        weights.linear(f"{block}.fc2", weights.layer_norm(f"{block}.post_fc_norm", t)) + x * weights[f"{block}.w_resid"]
    )


def particlenet(jets: Padded, inputs: Inputs, model: Any) -> Value:
    """Logits (batch, classes) of a ParticleNet."""
    if not model.use_counts:
        raise NotImplementedError(
            "export: a ParticleNet must have use_counts=True, got False; its logits depend on the other jets of a batch"
        )
    g, weights, x, points, columns = jets.graph, Weights(model), inputs.x, inputs.points, 2
    if "bn_fts.weight" in weights:
        scale, shift = weights.norm("bn_fts")
        x = x * scale + shift
    found = []
    for i, conv in enumerate(model.edge_convs):
        neighbours, missing = _neighbours(jets, points, columns, conv.k)
        x = points = _edge_conv(x, neighbours, missing, conv.k, weights, f"edge_convs.{i}", model.missing)
        columns = conv.bns[-1].num_features
        found.append(x)
    if "fusion_block.0.weight" in weights:
        weight, bias = weights.folded("fusion_block.0", "fusion_block.1")
        x, columns = g("Relu", g.linear(g.concat(*found, axis=1), weight, bias)), len(bias)
    counts = jets.valid.cast(x.dtype).sum(1, keep=True).maximum(1.0)
    return weights.head(jets.sum(x, columns) / counts)


def _neighbours(jets: Padded, x: Value, columns: int, k: int) -> tuple[Value, Value]:
    """(N, k) rows of the nearest others of the same jet, by distance and index, and where there is none; there N."""
    g = jets.graph
    if columns == 2:  # as `knn`: to the bit, so that equal distances are equal
        padded = jets.pad(x, columns)
        a, b = (padded.take(q, axis=2).unsqueeze(2) - padded.take(q, axis=2).unsqueeze(1) for q in range(2))
        d2 = a * a + b * b
    else:  # in float64 this form loses less than float32 differences do
        padded = jets.pad(x.cast(np.float64), columns)
        squares = (padded * padded).sum(2)
        d2 = squares.unsqueeze(2) - 2.0 * (padded @ padded.transpose(0, 2, 1)) + squares.unsqueeze(1)
    position = g.positions(jets.length)
    itself = g("Equal", position.unsqueeze(1), position.unsqueeze(0), dtype=np.bool_)
    d2 = jets.pack(g.where(jets.valid.unsqueeze(1) & g("Not", itself), d2, math.inf), jets.length)
    nothing = g.zeros(d2.dtype, jets.count, k) + math.inf  # TopK wants at least k
    dtypes = (d2.dtype, np.int64)
    distance, found = g("TopK", g.concat(d2, nothing, axis=1), [k], dtype=dtypes, axis=1, largest=0, sorted=1)
    missing = g("IsInf", distance, dtype=np.bool_)
    rows = jets.packed.take(g.where(missing, 0, (jets.jet * jets.length).unsqueeze(1) + found))
    return g.where(missing, jets.count, rows), missing


def _edge_conv(x: Value, neighbours: Value, missing: Value, k: int, weights: Weights, name: str, absent: str) -> Value:
    """The first layer of the edge network is split: of [x_i, x_j - x_i] into what i gives and what j gives."""
    g = x.graph
    weight, bias = weights.folded(f"{name}.convs.0", f"{name}.bns.0")
    of_self, of_difference = np.hsplit(weight, 2)
    own = g.linear(x, of_self - of_difference, bias)
    others = g.concat(g.linear(x, of_difference, np.zeros(len(bias))), g.zeros(x.dtype, 1, len(bias)), axis=0)
    edges = g("Relu", own.unsqueeze(1) + others.take(neighbours)).reshape(-1, len(bias))
    for i in weights.numbers(f"{name}.convs")[1:]:
        weight, bias = weights.folded(f"{name}.convs.{i}", f"{name}.bns.{i}")
        edges = g("Relu", g.linear(edges, weight, bias))
    edges = edges.reshape(-1, k, len(bias))
    if absent == "real":
        real = g("Not", missing).cast(x.dtype)
        mean = (edges * real.unsqueeze(2)).sum(1) / real.sum(1, keep=True).maximum(1.0)
    else:
        mean = edges.sum(1) / k
    if f"{name}.sc.weight" in weights:
        x = g.linear(x, *weights.folded(f"{name}.sc", f"{name}.sc_bn"))
    return g("Relu", x + mean)


NETWORKS = {
    "particle_transformer": particle_transformer,
    "particlenet": particlenet,
    "particlenet_lite": particlenet,
}
