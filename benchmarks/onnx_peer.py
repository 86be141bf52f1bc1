"""ONNX Runtime on the graphs that we export: the peer of the models where torch is not wanted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from fasttag import Jets, models
from fasttag.models._tagger import Tagger
from problems import Problem
from timing import local


def run(model: Tagger, p4: np.ndarray, valid: np.ndarray, threads: int = 1) -> Callable[[], np.ndarray]:
    """A function that gives the probabilities (J, classes) of padded jets."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        models.export(model, path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {"p4": p4, "valid": valid}
    return lambda: session.run(None, inputs)[0]


def peer(model: Tagger, p: Problem, threads: int = 1) -> tuple[Callable[[], float], int]:
    """Seconds for jets padded to the longest of them, for `compare`. Checked first: within 1e-5 of the model."""
    jets = Jets(p.p4, p.offsets)
    function = run(model, *jets.to_padded(int(jets.counts.max())), threads=threads)
    with torch.inference_mode():
        np.testing.assert_allclose(function(), model(jets).softmax(1).numpy(), rtol=0, atol=1e-5)
    return local(function, p)
