"""The package as a whole: what importing loads, who may import whom, what the wheel holds, how kernels are cached."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numba
import pytest

import fasttag
import fasttag_kernels
from children import environment, python
from fasttag_kernels import _numba

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("numba", "h5py", "hdf5plugin", "torch", "cupy", "triton", "awkward", "sklearn", "pandas", "matplotlib")
TREES = {"fasttag": ROOT / "fasttag", "fasttag_kernels": ROOT / "kernels" / "fasttag_kernels"}
MAY_IMPORT_TORCH = (
    "fasttag/models/*.py", "fasttag/losses.py", "fasttag/training.py", "fasttag/_baselines.py",
    "fasttag/compat/disco.py",
    "fasttag/compat/_neighbours.py", "fasttag/compat/torch_cluster.py", "fasttag/compat/*weaver*.py",
    "fasttag_kernels/_torch.py", "fasttag_kernels/_triton.py", "fasttag_kernels/*/triton_gpu.py",
)  # fmt: skip


def modules():
    """import path from its root -> set of imported top-level packages."""
    found = {}
    for name, tree in TREES.items():
        for path in sorted(tree.rglob("*.py")):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            roots = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            roots |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
            found[Path(name) / path.relative_to(tree)] = {root.partition(".")[0] for root in roots}
    return found


@pytest.mark.parametrize("package", ["fasttag", "fasttag.compat", "fasttag_kernels"])
def test_import_loads_numpy_only(package):
    code = f"import {package}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]"


def test_import_is_quick():
    """Best of five in fresh processes, over and above NumPy."""
    code = "import time, numpy; t = time.perf_counter(); import fasttag; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(5)) < 0.2


def test_kernels_know_nothing_of_fasttag():
    found = modules()
    assert sum(path.parts[0] == "fasttag_kernels" for path in found) > 10
    assert not [path for path, roots in found.items() if path.parts[0] == "fasttag_kernels" and "fasttag" in roots]


def test_who_imports_torch():
    importers = [path for path, roots in modules().items() if "torch" in roots]
    assert Path("fasttag_kernels/_torch.py") in importers
    assert not [str(path) for path in importers if not any(path.match(pattern) for pattern in MAY_IMPORT_TORCH)]


@pytest.mark.parametrize("package", [fasttag, fasttag_kernels])
def test_every_public_name_resolves(package):
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_one_version():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == fasttag.__version__


@pytest.mark.slow
def test_wheel_holds_both_trees(tmp_path):
    """Built as an installer would, but with the setuptools that is installed here."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fasttag", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"fasttag_hep-{fasttag.__version__}-py3-none-any.whl"
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    trees = {name: source / tree.relative_to(ROOT) for name, tree in TREES.items()}
    expected = {f"{n}/{p.relative_to(t)}" for n, t in trees.items() for p in t.rglob("*") if p.is_file()}
    assert found == expected
    assert {"fasttag/py.typed", "fasttag_kernels/py.typed", "fasttag/data/sample.h5"} <= found


def test_every_kernel_has_its_page():
    assert [op for op in fasttag_kernels.TABLE if not (TREES["fasttag_kernels"] / op / "README.md").is_file()] == []


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the kernels' sources which the cache takes for the real ones."""
    copy = tmp_path / "fasttag_kernels"
    shutil.copytree(TREES["fasttag_kernels"], copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(_numba, "__file__", str(copy / "_numba.py"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return copy


@pytest.mark.parametrize("helper", ["_math.py", "segment/numba_cpu.py"])
def test_editing_a_source_changes_the_cache(sources, helper):
    before = _numba._cache_folder()
    assert Path(before).is_dir() and Path(before).parent.name == "cache" and _numba._cache_folder() == before
    with open(sources / helper, "a") as file:
        file.write("# edited\n")
    assert _numba._cache_folder() != before


@pytest.mark.parametrize("obstacle", ["a file in the way", "no permission"])
def test_no_cache_where_nothing_can_be_written(sources, tmp_path, monkeypatch, obstacle):
    if obstacle == "a file in the way":
        (tmp_path / "cache").write_text("")
    else:
        monkeypatch.setattr("os.access", lambda path, mode: False)
    assert _numba._cache_folder() is None


SEGMENT = """
import json, numba, numpy as np
from fasttag_kernels import _numba
from fasttag_kernels.segment import numba_cpu, segment
found = segment(np.arange(6.0).reshape(3, 2), np.array([0, 2, 3])).tolist()
stats = numba_cpu.sum_rows.stats
print(json.dumps([found, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), _numba.CACHE_FOLDER]))
"""
SUMS = [[2.0, 4.0], [4.0, 5.0]]


def test_kernels_work_without_a_cache(tmp_path):
    (tmp_path / "file").write_text("")
    found, hits, _, folder = json.loads(python(SEGMENT, NUMBA_CACHE_DIR=tmp_path / "file"))
    assert (found, hits, folder) == (SUMS, 0, None)


def start_together(processes, cache):
    """Children that all find an empty cache; each must give the right sums."""
    command, env = [sys.executable, "-W", "error", "-c", SEGMENT], environment(NUMBA_CACHE_DIR=cache)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, env=env, **pipes) for _ in range(processes)]
    for child in children:
        out, error = child.communicate(timeout=300)
        assert child.returncode == 0, error
        assert json.loads(out)[0] == SUMS


@pytest.mark.slow
def test_processes_that_start_together_share_one_cache(tmp_path):
    start_together(3, tmp_path)
    found, hits, misses, folder = json.loads(python(SEGMENT, NUMBA_CACHE_DIR=tmp_path))
    assert (found, hits, misses) == (SUMS, 1, 0), "a later process compiles again"
    assert Path(folder).parent == tmp_path


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_two_cold_starts_at_once_a_hundred_times(tmp_path):
    for i in range(100):
        start_together(2, tmp_path / str(i))
