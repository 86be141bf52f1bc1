"""What README.md says of operations and taggers is what the table and the models say."""

from __future__ import annotations

import re
from pathlib import Path

import fasttag
from fasttag._backends import STATUS
from fasttag_kernels import TABLE

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_operations():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (Numba) \| (not yet|CUDA C|Triton) \| (-|`[^|]*`) \|$", README, re.M)
    gradients = {op: ", ".join(f"`{name}`" for name in row["gradients"]) or "-" for op, row in TABLE.items()}
    columns = {
        ("numba",): ("Numba", "not yet"),
        ("numba", "cuda"): ("Numba", "CUDA C"),
        ("numba", "triton"): ("Numba", "Triton"),
    }
    assert rows == [(op, *columns[tuple(row["backends"])], gradients[op]) for op, row in TABLE.items()]
    for status in set(STATUS.values()) - {"cpu"}:
        assert status in README.replace("\n", " ")


def test_taggers():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", README, re.M))
    count = lambda name: sum(p.numel() for p in fasttag.models.build(name).parameters())
    assert rows == {name: f"{count(name):,}" for name in fasttag.models.available()}
