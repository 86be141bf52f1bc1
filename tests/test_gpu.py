"""On a GPU: every op with a GPU backend, CuPy and torch, against the oracles and the CPU. Run by `make gpu`."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import fasttag
import pack_sample
import problems
from cases import CASES, OPS, arguments_of, assert_agrees, same_bits
from fasttag_kernels import TABLE, _dispatch
from many_jets import assert_gpu_is_cpu

pytestmark = pytest.mark.gpu
ON_GPU = [op for op, row in TABLE.items() if {"cuda", "triton"} & set(row["backends"])]
CALLS = [(op, "cupy") for op in ON_GPU if "cuda" in TABLE[op]["backends"]] + [(op, "torch") for op in ON_GPU]
every_call = pytest.mark.parametrize(("op", "library"), CALLS)
every_case = pytest.mark.parametrize("case", CASES)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
both_libraries = pytest.mark.parametrize("library", ["cupy", "torch"])


def to_gpu(array: np.ndarray, library: str) -> Any:
    if library == "cupy":
        return importlib.import_module("cupy").asarray(array)
    return importlib.import_module("torch").from_numpy(array.copy()).cuda()


def to_host(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(map(to_host, result))
    return result.detach().cpu().numpy() if _dispatch.library_of(result) == "torch" else result.get()


def run(op: str, arguments: tuple, library: str, **options: Any) -> Any:
    if OPS[op].ragged:
        options["offsets_host"] = arguments[OPS[op].offsets_at]
    return OPS[op].run(*(to_gpu(argument, library) for argument in arguments), **options)


@every_call
@every_case
@every_dtype
def test_agrees_with_the_oracle(op, case, dtype, library):
    """Within twice the bounds of the CPU; the same bits in a second run; the result is where the input was."""
    arguments = arguments_of(op, case, dtype)
    result = run(op, arguments, library)
    for part in result if isinstance(result, tuple) else (result,):
        assert _dispatch.library_of(part) == library and _dispatch.device_of(part) == "cuda:0"
    assert_agrees(op, dtype, arguments, to_host(result), times=2.0)
    assert same_bits(to_host(result), to_host(run(op, arguments, library))), "a second run differs"


@every_call
def test_strided_input(op, library):
    arguments = arguments_of(op, "mixed", "float32")
    at = OPS[op].offsets_at if OPS[op].ragged else None
    options = {"offsets_host": arguments[at]} if OPS[op].ragged else {}
    strided = [
        to_gpu(a, library) if i == at else to_gpu(np.repeat(a, 2, axis=-1), library)[..., ::2]
        for i, a in enumerate(arguments)
    ]
    assert same_bits(to_host(run(op, arguments, library)), to_host(OPS[op].run(*strided, **options)))


@every_call
def test_nobody_waits(op, library):
    """The call comes back while work put on the stream before it still runs; its result is that of a quiet stream."""
    torch = importlib.import_module("torch")
    arguments = arguments_of(op, "mixed", "float32")
    expected = to_host(run(op, arguments, library))  # compiled, memory at hand
    on_gpu = [to_gpu(argument, library) for argument in arguments]
    options = {"offsets_host": arguments[OPS[op].offsets_at]} if OPS[op].ragged else {}
    stream = torch.cuda.Stream() if library == "torch" else torch.cuda.default_stream()
    OPS[op].run(*on_gpu, **options)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        OPS[op].run(*on_gpu, **options)  # memory of this stream
        torch.cuda.synchronize()
        torch.cuda._sleep(2_000_000_000)  # cycles, about a second
        before = torch.cuda.Event()
        before.record(stream)
        result = OPS[op].run(*on_gpu, **options)
        assert not before.query(), "the call waited for the GPU"
        torch.cuda.synchronize()
    assert same_bits(expected, to_host(result))


@pytest.mark.parametrize("op", [op for op in ON_GPU if TABLE[op]["gradients"]])
def test_gradients_of_tensors(op):
    """Through autograd, against the same on the CPU, in float64."""
    torch = importlib.import_module("torch")
    p4, offsets = CASES["massive"]()
    arguments = OPS[op].arguments(p4, offsets)
    names = {"kinematics": [0], "segment": [0], "pairwise_features": [0], "distance_correlation": [0, 1]}.get(
        op, [0, 2]
    )
    found = []
    for device in ("cpu", "cuda"):
        tensors = [torch.from_numpy(a.copy()).to(device) for a in arguments]
        inputs = [tensors[i].requires_grad_() for i in names]
        options = {"offsets_host": offsets} if OPS[op].ragged else {}
        result = OPS[op].run(*tensors, **options)
        parts = result if isinstance(result, tuple) else (result,)
        weights = [torch.linspace(1, 2, part.numel(), dtype=part.dtype).view(part.shape).to(device) for part in parts]
        total = sum((part * weight).sum() for part, weight in zip(parts, weights))
        found.append([gradient.cpu().numpy() for gradient in torch.autograd.grad(total, inputs)])
    for cpu, gpu in zip(*found, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-9, atol=1e-10 * np.abs(cpu).max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("biased", [True, False])
def test_attention_in_halves_errs_as_torch_does(dtype, biased):
    """Against float64 at most twice the error of plain torch in the same numbers, value and each gradient."""
    torch = importlib.import_module("torch")
    counts = [1, 0, 16, 17, 40, 64, 65, 150]
    rng = np.random.default_rng(3)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    shapes = (offsets[-1], 3, 8, 16), (8, np.square(counts).sum()), (offsets[-1], 8, 16)
    qkv, bias, gradient = (torch.from_numpy(rng.normal(size=x)).to("cuda", getattr(torch, dtype)) for x in shapes)
    inputs = [x.requires_grad_() for x in ([qkv, bias] if biased else [qkv])]

    def plain(qkv, bias=None):
        places, parts = np.concatenate([[0], np.cumsum(np.square(counts))]), []
        for a, b, at in zip(offsets, offsets[1:], places):
            q, k, v = qkv[a:b].permute(1, 2, 0, 3)
            scores = q @ k.mT / 4
            if bias is not None:
                scores = scores + bias[:, at : at + (b - a) ** 2].view(8, b - a, b - a)
            parts.append((torch.softmax(scores, -1) @ v).transpose(0, 1))
        return torch.cat(parts)

    def results(run, inputs, gradient):
        out = run(*inputs)
        return [x.detach().double() for x in (out, *torch.autograd.grad(out, inputs, gradient))]

    there = torch.from_numpy(offsets).cuda()
    ours = lambda qkv, bias=None: fasttag.particle_attention(qkv, there, bias=bias, offsets_host=offsets)
    exact = results(plain, [x.detach().double().requires_grad_() for x in inputs], gradient.double())
    for found, torchs, right in zip(results(ours, inputs, gradient), results(plain, inputs, gradient), exact):
        assert (found - right).norm() <= 2 * (torchs - right).norm()


@pytest.mark.parametrize("op", ON_GPU)
def test_traced_whole(op):
    """torch.compile(fullgraph=True) traces a call on CUDA tensors."""
    torch = importlib.import_module("torch")
    arguments = arguments_of(op, "mixed", "float32")
    tensors = [to_gpu(argument, "torch") for argument in arguments]
    options = {"offsets_host": arguments[OPS[op].offsets_at]} if OPS[op].ragged else {}
    if op == "pairwise_features":
        options["pairs"] = int((np.diff(arguments[1]) ** 2).sum())
    compiled = torch.compile(lambda *given: OPS[op].run(*given, **options), fullgraph=True, backend="aot_eager")
    assert same_bits(to_host(OPS[op].run(*tensors, **options)), to_host(compiled(*tensors)))


packed = pytest.param("packed", marks=pytest.mark.skipif(not pack_sample.SAMPLE.exists(), reason="no packed sample"))


@pytest.mark.parametrize("sample", ["reference", packed])
def test_a_hundred_thousand_jets(sample):
    p4, offsets = problems.problem("gpu") if sample == "reference" else _packed()
    assert_gpu_is_cpu(p4, offsets, lambda array: to_gpu(array, "cupy"), to_host)


def _packed() -> tuple[np.ndarray, np.ndarray]:
    jets = pack_sample.unpack()
    return jets.p4, jets.offsets


@both_libraries
def test_whole_chain_from_jets(library):
    """read -> to -> ops -> model on the GPU, as on the CPU."""
    jets = fasttag.read(fasttag.io.sample_path(), stop=200)
    there = jets.to("cuda", library=library)
    images = fasttag.pixelate(there, channels=("pt", "n_muon"))
    assert (np.abs(to_host(images) - fasttag.pixelate(jets, channels=("pt", "n_muon"))) > 1e-5).any(
        (1, 2, 3)
    ).sum() <= 1
    found = to_host(fasttag.pairwise_features(there, triangle="lower"))
    np.testing.assert_allclose(found, fasttag.pairwise_features(jets, triangle="lower"), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(to_host(fasttag.jet_p4(there)), fasttag.jet_p4(jets), rtol=1e-6, atol=1e-4)
    for a, b in zip(to_host(there.to_padded(200)), jets.to_padded(200)):
        assert np.array_equal(a, b)
    if library == "torch":
        for name in ("pfn", "efn", "cnn"):
            model = fasttag.models.build(name)
            cpu = fasttag.models.score(model, jets)
            gpu = fasttag.models.score(model.cuda(), there)
            np.testing.assert_allclose(np.asarray(gpu), np.asarray(cpu), atol=1e-3, err_msg=name)
