"""The command line end to end on toy jets, and the README's example as written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import fasttag
from fasttag.cli import COMMANDS, main
from toys import toy_jets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train.h5, val.h5, test.h5 and two short runs of a PFN, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("cli")
    for name, jets, seed in (("train", 600, 1), ("val", 200, 2), ("test", 400, 3)):
        toys = toy_jets(jets, seed)
        wrong = np.random.default_rng(seed).random(jets) < 0.1  # so that some background passes every cut
        fasttag.write(folder / f"{name}.h5", toys.with_labels(label=toys.labels["label"] ^ wrong))
    for seed in (1, 2):
        out = ["--out", str(folder / f"run{seed}"), "--seed", str(seed), "--epochs", "2", "--batch-size", "50"]
        assert main(["train", str(folder / "train.h5"), "--val", str(folder / "val.h5"), "--model", "pfn", *out]) == 0
    return folder


def test_process_adds_features(folder, capsys):
    out = folder / "processed.h5"
    inputs = [str(folder / "val.h5"), str(folder / "test.h5")]
    command = ["process", *inputs, "--out", str(out), "--features", "kinematics", "energy_flow", "--chunk", "64"]
    assert main(command) == 0
    assert "600 jets" in capsys.readouterr().out
    jets = fasttag.read(out)
    expected = fasttag.Jets.concatenate([fasttag.read(path) for path in inputs])
    np.testing.assert_array_equal(jets.p4, expected.p4)
    np.testing.assert_array_equal(jets.labels["label"], expected.labels["label"])
    np.testing.assert_array_equal(jets.columns["pt"], fasttag.kinematics(jets).pt)
    np.testing.assert_allclose(jets.columns["z"], fasttag.features.energy_flow(jets).x[:, 0], rtol=1e-6)


def test_evaluate_one_run(folder, capsys):
    assert main(["evaluate", str(folder / "test.h5"), "--run", str(folder / "run1"), "--out", str(folder / "one")]) == 0
    numbers = json.loads((folder / "one" / "metrics.json").read_text())
    jets = fasttag.read(folder / "test.h5")
    score = fasttag.models.score(fasttag.models.load(folder / "run1" / "best.safetensors"), jets)
    assert numbers["jets"] == 400
    assert numbers["single_runs"][0]["auc"] == fasttag.metrics.auc(score, jets.labels["label"])
    rejection = fasttag.metrics.background_rejection(score, jets.labels["label"], 0.5)
    assert numbers["single_runs"][0]["rejection_0.5"]["value"] == pytest.approx(rejection.value)
    assert "ensembles" not in numbers
    assert f"{numbers['single_runs'][0]['auc']:.4f}" in capsys.readouterr().out
    pictures = sorted(path.name for path in (folder / "one").glob("*.png"))
    assert pictures == ["images.png", "roc.png", "scores.png", "sculpting.png"]


def test_evaluate_two_runs(folder, capsys):
    runs = [str(folder / "run1"), str(folder / "run2")]
    assert main(["evaluate", str(folder / "test.h5"), "--run", *runs, "--out", str(folder / "two")]) == 0
    numbers = json.loads((folder / "two" / "metrics.json").read_text())
    assert set(numbers["ensembles"]["0.3"]) >= {"single", "mean", "median"}
    printed = capsys.readouterr().out
    assert "mean (+- spread)" in printed
    assert "run2" in printed


def test_train_refuses_and_resumes(folder, capsys):
    command = ["train", str(folder / "train.h5"), "--val", str(folder / "val.h5"), "--model", "pfn"]
    command += ["--out", str(folder / "run1"), "--epochs", "2", "--batch-size", "50"]
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "{}/missing.h5", "--run", "{}/run1"], "missing.h5"),
        (["evaluate", "{}/test.h5", "--run", "{}/nothing"], "nothing"),
        (["process", "{}/broken.h5", "--out", "{}/out.h5"], "broken.h5"),
        (["train", "{}/test.h5", "--val", "{}/val.h5", "--model", "pfn", "--epochs", "0"], "epochs must be 1 or more"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, command, message):
    (folder / "broken.h5").write_bytes((folder / "test.h5").read_bytes()[:-1000])
    assert main([part.format(folder) for part in command]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"fasttag {command[0]}: ")
    assert error.count("\n") == 1
    assert not (folder / "out.h5").exists()


def test_info_and_models(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in (f"fasttag {fasttag.__version__}", "GPU:", "numba ", "blosc2 yes", "pixelate", "CPU:"):
        assert word in printed
    assert main(["models"]) == 0
    assert "82,458" in capsys.readouterr().out


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in COMMANDS)


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--epochs", "3"]) == 0
    printed = capsys.readouterr().out
    assert "pixelate 40x40" in printed
    assert "AUC" in printed
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page.split("base64", 1)[0]  # nothing is loaded from elsewhere


def test_readme_example(capsys):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert "Rejection" in capsys.readouterr().out
