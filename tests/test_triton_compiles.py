"""Every variant of the Triton kernels compiles without a GPU, within the limits that its README states."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

import emulation
import fasttag_kernels

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no Triton: the extra test has it on Linux"
)
FOLDER = Path(fasttag_kernels.__file__).parent / "particle_attention"
ROW = re.compile(r"^\| `(_\w+)` \| (\w+) \| (up to \d+|longer) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", re.M)
TYPES = {"float32": "fp32", "bfloat16": "bf16"}
POINTERS = ("gradient", "qkv", "bias", "out", "by_qkv", "by_bias")


def stated() -> list[tuple]:
    """(kernel, dtype, class, keys, warps, registers, shared memory, occupancy in percent) of the README."""
    found = ROW.findall((FOLDER / "README.md").read_text())
    return [(*row[:3], *map(int, row[3:])) for row in found]


def compiled(
    kernel: Any, dtype: str, long: bool, tile: tuple, architecture: int, head_dim: int = 16, **options: Any
) -> Any:
    """A kernel for 8 heads with bias, by Triton's compiler."""
    triton = importlib.import_module("triton")
    keys, warps, registers = tile
    given = {"H": 8, "D": head_dim, "WIDTH": 16, "SCALE": 1 / math.sqrt(head_dim), "BIASED": True, "DROPOUT": 0.1}
    given |= {"ROWS": 16, "KEYS": keys, "LONG": long, "OF_QKV": True, "OF_BIAS": True} | options
    kinds = {"jets": "*i64", "sums": "*fp32", **dict.fromkeys(POINTERS, f"*{TYPES[dtype]}")}
    names = [parameter.name for parameter in kernel.params]
    signature = {name: "constexpr" if name in given else kinds.get(name, "i64") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
    constants = {name: given[name] for name in names if name in given}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "maxnreg": registers or None})


def uses(found: Any) -> dict[str, int]:
    """Registers, stack, spills, shared memory and instructions of tensor cores."""
    tools = Path(importlib.import_module("triton").__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        resources, code = (
            subprocess.run([tools / "cuobjdump", flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )
    numbers = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", resources))
    count = lambda pattern: len(re.findall(rf"\s{pattern}[. ]", code))
    return {
        "registers": int(numbers["REG"]),
        "stack": int(numbers["STACK"]),
        "spills": count("LDL") + count("STL") + int(numbers["LOCAL"]),
        "shared": found.metadata.shared,
        "HMMA": count("HMMA"),
        "HGMMA": count("HGMMA"),
    }


def variants() -> list[tuple]:
    """(kernel, dtype, class, tile) of the table of tiles, as they are launched."""
    if importlib.util.find_spec("triton") is None:
        return []
    gpu = importlib.import_module("fasttag_kernels.particle_attention.triton_gpu")
    torch = importlib.import_module("torch")
    classes = [*(f"up to {end}" for end in gpu.ENDS), "longer"]
    rows = []
    for dtype in TYPES:
        for kernel, tiles in gpu.TILES[getattr(torch, dtype)].items():
            kinds = classes if len(tiles) > 1 else ["longer"]
            rows += [(kernel, dtype, kind, tile) for kind, tile in zip(kinds, tiles)]
    return rows


def test_readme_has_every_variant():
    assert [row[:5] for row in stated()] == [(*row[:3], *row[3][:2]) for row in variants()]


@pytest.mark.parametrize("architecture", [pytest.param(80, marks=pytest.mark.soak), 90])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("variant", variants(), ids=lambda v: " ".join(map(str, v)))
def test_limits(variant, dropout, architecture):
    """No stack, no spills, no more registers and shared memory than stated; tensor cores for bfloat16.

    The tiles are chosen for sm_90; sm_80 may take more registers and spill a few.
    """
    name, dtype, kind, tile = variant
    ((*_, registers, shared, percent),) = [row for row in stated() if row[:3] == variant[:3]]
    gpu = importlib.import_module("fasttag_kernels.particle_attention.triton_gpu")
    found = uses(compiled(getattr(gpu, name), dtype, kind == "longer", tile, architecture, DROPOUT=dropout))
    if architecture == 80:
        assert found["stack"] <= 24, found
    else:
        assert found["stack"] == found["spills"] == 0, found
        assert found["registers"] <= registers and found["shared"] <= shared, found
        assert 100 * emulation.occupancy(found, 32 * tile[1], architecture) >= percent, found
    tensor_cores = found["HMMA"] + found["HGMMA"]
    assert tensor_cores > 0 if dtype == "bfloat16" else tensor_cores == 0, found


def test_a_kernel_that_spills_is_found():
    """The gradients of 64 keys at once, in half the registers they take."""
    gpu = importlib.import_module("fasttag_kernels.particle_attention.triton_gpu")
    found = uses(compiled(gpu._backward, "bfloat16", False, (64, 2, 128), 90))
    assert found["spills"] > 0 and found["stack"] > 0
