"""The command line end to end on toy jets, and the README's example as written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import fasttag
from children import python
from fasttag.cli import COMMANDS, demo, evaluate, main, verify
from toys import toy_jets

TOYS = ("{}/test.h5", "--val", "{}/val.h5", "--model", "pfn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train.h5, val.h5, test.h5, two short runs of a PFN made by the commands themselves, and an untrained EFN."""
    folder = tmp_path_factory.mktemp("cli")
    for name, jets, seed in (("train", 600, 1), ("val", 200, 2), ("test", 400, 3)):
        toys = toy_jets(jets, seed)
        wrong = np.random.default_rng(seed).random(jets) < 0.1  # so that some background passes every cut
        fasttag.write(folder / f"{name}.h5", toys.with_labels(label=toys.labels["label"] ^ wrong))
    fasttag.models.save(fasttag.models.build("efn"), folder / "efn.safetensors")
    for seed in (1, 2):
        out = ["--out", str(folder / f"run{seed}"), "--seed", str(seed), "--epochs", "2", "--batch-size", "50"]
        assert main(["train", str(folder / "train.h5"), "--val", str(folder / "val.h5"), "--model", "pfn", *out]) == 0
    return folder


def test_process_adds_features(folder, capsys):
    out = folder / "processed.h5"
    inputs = [str(folder / "val.h5"), str(folder / "test.h5")]
    command = ["process", *inputs, "--out", str(out), "--chunk", "64"]
    assert main([*command, "--features", "kinematics", "--features", "energy_flow"]) == 0
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
    jsd = fasttag.metrics.jsd(score, jets.labels["label"], fasttag.kinematics(fasttag.jet_p4(jets)).mass)
    assert numbers["single_runs"][0]["jsd_0.5"] == pytest.approx(jsd._asdict())
    assert "ensembles" not in numbers
    assert f"{numbers['single_runs'][0]['auc']:.4f}" in capsys.readouterr().out
    pictures = sorted(path.name for path in (folder / "one").glob("*.png"))
    assert pictures == ["images.png", "roc.png", "scores.png", "sculpting.png"]


@pytest.mark.parametrize(("second", "ensembles"), [("run2", True), ("efn.safetensors", False)])
def test_evaluate_two_runs(folder, capsys, second, ensembles):
    """Runs of one tagger make an ensemble, those of two taggers do not."""
    runs = ["--run", str(folder / "run1"), "--run", str(folder / second)]
    assert main(["evaluate", str(folder / "test.h5"), *runs, "--out", str(folder / "two")]) == 0
    numbers = json.loads((folder / "two" / "metrics.json").read_text())
    assert numbers["runs"] == ["run1", second]
    assert len(numbers["single_runs"]) == 2
    printed = capsys.readouterr().out
    assert ("ensembles" in numbers, "mean (+- spread)" in printed) == (ensembles, ensembles)
    assert second in printed


@pytest.mark.parametrize("name", ["run1", "run1/best.safetensors"])
def test_evaluate_runs_of_one_name(folder, capsys, monkeypatch, name):
    monkeypatch.chdir(folder)
    shutil.copytree("run2", "other/run1", dirs_exist_ok=True)
    assert main(["evaluate", "test.h5", "--run", name, "--run", f"other/{name}", "--out", "names"]) == 0
    assert json.loads(Path("names/metrics.json").read_text())["runs"] == [name, f"other/{name}"]
    assert f"other/{name} " in capsys.readouterr().out


@pytest.mark.parametrize("last", [0, 1])
def test_evaluate_a_file_sorted_by_class(folder, monkeypatch, last):
    """Many chunks of one class before the first of the other: images and plots as for the mixed file."""
    monkeypatch.setattr(evaluate, "CHUNK", 64)
    monkeypatch.setattr(evaluate, "IMAGE_JETS", 100)
    jets = fasttag.read(folder / "test.h5")
    order = np.argsort(jets.labels["label"] == last, kind="stable")
    fasttag.write(folder / "sorted.h5", jets[order])
    tagger = fasttag.models.load(folder / "run1" / "best.safetensors")
    scored = evaluate.score_file([tagger], folder / "sorted.h5")
    np.testing.assert_array_equal(scored.label, jets.labels["label"][order])
    assert np.bincount(scored.some.labels["label"]).tolist() == [100, 100]
    for k in (0, 1):
        firsts = jets[np.flatnonzero(jets.labels["label"] == k)[:100]]
        np.testing.assert_array_equal(scored.some[scored.some.labels["label"] == k].p4, firsts.p4)
    assert main(["evaluate", str(folder / "sorted.h5"), "--run", str(folder / "run1")]) == 0
    assert (folder / "run1" / "evaluation" / "images.png").exists()


@pytest.mark.parametrize("label", [0, 1, None])
def test_evaluate_needs_both_classes(folder, capsys, monkeypatch, label):
    """One line that names the file, and no jet is scored."""
    monkeypatch.setattr(fasttag.models, "score", None)
    jets = fasttag.read(folder / "test.h5")
    fasttag.write(folder / "one_class.h5", jets[jets.labels["label"] == label] if label is not None else jets[:0])
    assert main(["evaluate", str(folder / "one_class.h5"), "--run", str(folder / "run1")]) == 2
    error = capsys.readouterr().err
    assert "one_class.h5 must hold signal (label 1) and background" in error
    assert f"got labels {[] if label is None else [label]};" in error


def test_table_shows_an_infinite_spread():
    single = {"auc": 1.0, "accuracy": 1.0, "rejection_0.3": {"value": 7.0, "error": 1.0}}
    single |= {"rejection_0.5": single["rejection_0.3"], "jsd_0.5": {"value": None, "error": None, "floor": None}}
    estimates = {kind: {"value": 7.0, "spread": spread} for kind, spread in (("single", None), ("mean", 0.0))}
    estimates["median"] = {"value": None, "spread": None}
    numbers = {"jets": 2, "signal": 1, "single_runs": [single], "ensembles": {"0.3": estimates, "0.5": estimates}}
    cells = [line.split("spread)")[1].split("  ") for line in evaluate.table(["a"], numbers).splitlines()[-3:]]
    assert [[cell.strip() for cell in row if cell] for row in cells] == [["7 +- inf"] * 2, ["7 +- 0"] * 2, ["inf"] * 2]


@pytest.mark.parametrize(
    ("jsd", "cell"),
    [
        ((0.25, 0.01, 0.05), "4 +- 0.16"),
        ((0.04, 0.02, 0.05), "> 20 (floor)"),
        ((0.0, 0.0, 0.0), "-"),
        ((None, None, None), "-"),
    ],
)
def test_table_shows_the_sculpting(jsd, cell):
    single = {"auc": 1.0, "accuracy": 1.0, "jsd_0.5": dict(zip(("value", "error", "floor"), jsd))}
    single["rejection_0.3"] = single["rejection_0.5"] = {"value": 7.0, "error": 1.0}
    head, line = evaluate.table(["a"], {"jets": 2, "signal": 1, "single_runs": [single]}).splitlines()[1:]
    assert line.endswith(f"7 +- 1 {cell:>18s}")
    assert len(line) == len(head)


def test_train_with_disco(folder, capsys):
    """As the library does it, from a label of the files or from the mass of the constituents."""
    for name in ("train", "val"):
        jets = fasttag.read(folder / f"{name}.h5")
        mass = fasttag.kinematics(fasttag.jet_p4(jets)).mass
        fasttag.write(folder / f"massive_{name}.h5", jets.with_labels(m=mass, other=mass))
    settings = ["--epochs", "2", "--batch-size", "200", "--disco", "3"]
    for prefix, column in (("", "mass"), ("massive_", "m")):
        command = ["train", str(folder / f"{prefix}train.h5"), "--val", str(folder / f"{prefix}val.h5")]
        out = str(folder / f"disco_{column}")
        assert main([*command, "--model", "pfn", "--out", out, *settings, "--against", column]) == 0
        assert "val disco 0." in capsys.readouterr().out
    train, val = (fasttag.read(folder / f"{name}.h5") for name in ("train", "val"))
    expected = fasttag.training.Settings(epochs=2, batch_size=200, disco=3.0, against="mass")
    fasttag.training.fit("pfn", train, val, folder / "disco_library", expected, progress=False)
    weights = [
        fasttag.training.read_tensors(folder / f"disco_{name}" / "last.safetensors")[0]
        for name in ("mass", "m", "library")
    ]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][key], other[key]) for key in weights[0])


def test_train_takes_a_configuration(folder, capsys):
    """Columns of the files reach the recipe, also where only some files have others besides."""
    rng = np.random.default_rng(3)
    for name in ("train", "val"):
        jets = fasttag.read(folder / f"{name}.h5")
        columns = {"charge": rng.integers(-1, 2, jets.p4.shape[1]), "kind": rng.integers(0, 5, jets.p4.shape[1])}
        jets = jets[:60].compact() if name == "val" else jets[:120].compact()
        jets = jets.with_columns(**{k: v[: jets.p4.shape[1]].astype(np.int8) for k, v in columns.items()})
        fasttag.write(folder / f"charged_{name}.h5", jets)
        fasttag.write(folder / f"more_{name}.h5", jets.with_columns(other=jets.p4[0]))
    command = ["train", str(folder / "charged_train.h5"), str(folder / "more_train.h5"), "--epochs", "1"]
    command += ["--val", str(folder / "charged_val.h5"), "--out", str(folder / "kinpid"), "--config"]
    lite = ["inputs=kinpid", "fc_params=[[8,0.1]]", "--model", "particlenet_lite"]
    assert main([*command, *lite]) == 0
    config = fasttag.models.load(folder / "kinpid" / "best.safetensors").config
    assert config["inputs"] == "kinpid" and config["fc_params"] == [[8, 0.1]]
    for wrong, message in (
        ("inputs=kin", "--config must hold arguments of pfn"),
        ("kin", "must be NAME=VALUE, got 'kin'"),
    ):
        assert main([*command, wrong, "--model", "pfn"]) == 2
        assert message in capsys.readouterr().err


def test_train_refuses_and_resumes(folder, capsys):
    command = ["train", str(folder / "train.h5"), "--val", str(folder / "val.h5"), "--model", "pfn"]
    command += ["--out", str(folder / "run1"), "--epochs", "2", "--batch-size", "50"]
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "model", "rejections", "agreeing"),
    [
        ("particlenet", "particlenet", ("1294 +- 104", "329 +- 13"), ["ParticleNet, arXiv:1902.09914"]),
        ("pcnn", None, ("759 +- 47", "201 +- 6"), ["P-CNN, arXiv:1902.09914", "P-CNN, arXiv:1902.08570"]),
    ],
)
def test_verify_published_scores(shared, capsys, name, model, rejections, agreeing):
    """What the authors submitted agrees with what was published of it."""
    folder = shared / "reference_scores"
    command = ["verify", str(folder / "labels.npz"), "--scores", str(folder / f"{name}.npz")]
    assert main([*command, *(["--model", model] if model else [])]) == 0
    head, _, own, *rows = capsys.readouterr().out.splitlines()
    assert head == "404,000 jets, 202,086 top"
    assert re.split(r"  +", own)[-2:] == list(rejections)
    agrees = {row.split("  ")[0] for row, verdict in zip(rows[::2], rows[1::2]) if verdict.startswith("  agrees")}
    assert {*agreeing} <= agrees
    assert "ParticleNet, fine-tuned, arXiv:2202.03772" not in agrees
    assert len(rows) == 2 * (3 if model else len(verify.PUBLISHED))


def test_verify_a_checkpoint(folder, capsys):
    """The same numbers as from the scores, and beside the rows of this tagger only."""
    jets = fasttag.read(folder / "test.h5")
    model = fasttag.models.load(folder / "run1" / "best.safetensors")
    score = fasttag.models.score(model, jets)
    np.save(folder / "scores.npy", score)
    np.savez(folder / "labels.npz", jets.labels["label"])
    printed = []
    checkpoint = str(folder / "run1" / "best.safetensors")
    for file, *options in (
        ("test.h5", "--checkpoint", checkpoint),
        ("test.h5", "--scores", str(folder / "scores.npy"), "--model", "pfn"),
        ("labels.npz", "--scores", str(folder / "scores.npy"), "--model", "pfn"),
    ):
        assert main(["verify", str(folder / file), *options]) == 0
        printed.append(capsys.readouterr().out.splitlines())
    for lines in printed:
        assert lines[1].startswith("not the public test file, which has 404,000 jets")
        assert lines[3].split()[1:] == printed[0][3].split()[1:]
        assert lines[4].startswith("PFN, arXiv:1902.09914")
    rejection = fasttag.metrics.background_rejection(score, jets.labels["label"])
    assert f"{rejection.value:.0f} +- {rejection.error:.0f}" in printed[0][3]


def test_verify_when_the_signal_is_another_logit(folder, capsys):
    """The top is label 1 whatever its logit; with the wrong one the AUC shows it."""
    model = fasttag.models.load(folder / "run1" / "best.safetensors")
    swapped = fasttag.models.build("pfn", classes=("top", "QCD"), signal=0)
    state = model.state_dict()
    for name in ("f.6.weight", "f.6.bias"):
        state[name] = state[name].flip(0)
    swapped.load_state_dict(state)
    fasttag.models.save(swapped, folder / "swapped.safetensors")
    command = ["verify", str(folder / "test.h5"), "--checkpoint", str(folder / "swapped.safetensors")]
    assert main(command) == 0
    assert "below 0.5" not in capsys.readouterr().out
    assert main([*command, "--classes", "top,QCD", "--signal", "QCD"]) == 0
    assert "the AUC is below 0.5" in capsys.readouterr().out


def test_verify_a_checkpoint_of_weaver(folder, capsys):
    model = fasttag.models.build("particlenet_lite", classes=("top", "QCD"), signal=0, missing="ghost")
    fasttag.models.save(model, folder / "lite.pt", format="weaver")
    command = ["verify", str(folder / "test.h5"), "--checkpoint", str(folder / "lite.pt")]
    assert main([*command, "--classes", "top,QCD", "--signal", "top"]) == 0
    lines = capsys.readouterr().out.splitlines()
    jets = fasttag.read(folder / "test.h5")
    loaded = fasttag.models.load(folder / "lite.pt", classes=("top", "QCD"), signal=0)
    auc = fasttag.metrics.auc(fasttag.models.score(loaded, jets), jets.labels["label"])
    assert f"lite.pt {auc:.5f} +-" in re.sub(" +", " ", lines[3])
    assert lines[4].startswith("ParticleNet-Lite, arXiv:1902.08570")
    assert main(command) == 2
    assert "lite.pt: must come with classes and signal, got []" in capsys.readouterr().err


def test_verify_counts_differences():
    """Errors of both and of the rounding; nothing to say where nothing is published or no background passed."""
    row = verify.Published("A", "", "1", "0.98", "-", "100 +- 30", "50 +- 3")
    n = verify.Number
    numbers = [n(0.99, 0.0), n(0.9, 0.1), n(150.0, 40.0), n(np.inf, np.inf, 73.4)]
    auc, accuracy, low, high = verify.differences(numbers, row)
    assert (accuracy, high) == (None, None)
    assert low == pytest.approx(1.0, abs=1e-4)
    assert auc == pytest.approx(12**0.5)
    assert "  differs" in verify.table("a", numbers, [row])
    close = [n(0.98, 0.01), *numbers[1:]]
    printed = verify.table("a", close, [row])
    assert "  agrees as far as compared " in printed
    assert "> 73 (68%)" in printed and "inf" not in printed
    assert "  agrees as far" not in verify.table("a", close, [row._replace(rejection_50="-")])
    assert "  agrees " in verify.table("a", close, [row._replace(rejection_50="-")])


def test_published_numbers_are_numbers():
    """Of every row each cell is a value, a value with its error, or a dash; models are ours or will be."""
    for row in verify.PUBLISHED:
        assert re.fullmatch(r"\d{4}\.\d{5}", row.paper)
        assert all(re.fullmatch(r"0\.\d+", cell) for cell in (row.auc, row.accuracy))
        assert all(re.fullmatch(r"\d+( \+- [\d.]+)?|-", cell) for cell in (row.rejection_30, row.rejection_50))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["verify", "{}/test.h5", "--checkpoint", "{}/missing.pt"], "missing.pt"),
        (["verify", "{}/test.h5", "--scores", "{}/broken.npy"], "broken.npy: cannot be read as .npy or .npz"),
        (["verify", "{}/test.h5", "--scores", "{}/broken.npz"], "broken.npz: cannot be read as .npy or .npz"),
        (["verify", "{}/test.h5", "--scores", "{}/two.npz"], "two.npz: must hold one array, got 2"),
        (["verify", "{}/test.h5", "--scores", "{}/two.npy"], "must have one shape (J,), got (2,) and (400,)"),
        (["verify", "{}/bare.h5", "--scores", "{}/two.npy"], "bare.h5 must have a label 'label'"),
        (
            ["verify", "{}/test.h5", "--checkpoint", "{}/efn.safetensors", "--classes", "top,QCD"],
            "--classes must be different names, and --signal one of them, got top,QCD and None",
        ),
        (["evaluate", "{}/missing.h5", "--run", "{}/run1"], "missing.h5"),
        (["evaluate", "{}/test.h5", "--run", "{}/nothing"], "nothing"),
        (["process", "{}/broken.h5", "--out", "{}/out.h5"], "broken.h5"),
        (["process", "{}/test.h5", "--out", "{}/nowhere/out.h5"], "nowhere: no such folder"),
        (["train", *TOYS, "--epochs", "0"], "epochs must be 1 or more"),
        (["train", *TOYS, "--disco", "5"], "disco and against must be given together, got 5.0"),
        (["train", *TOYS, "--against", "mass"], "got 0.0 and 'mass'"),
        (["train", *TOYS, "--out", "{}/bad", "--disco", "5", "--against", "tau"], "a label of train, one of ['label']"),
        (["evaluate", "{}/test.h5", "--run", "{}/run1", "--run", "{}/run1/best.safetensors"], "must be given once"),
        (["demo", "--epochs", "0"], "epochs must be 1 or more"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, monkeypatch, command, message):
    monkeypatch.setattr(demo, "measure", None)  # nothing is timed first
    (folder / "broken.h5").write_bytes((folder / "test.h5").read_bytes()[:-1000])
    (folder / "broken.npy").write_bytes(b"no array")
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    np.save(folder / "two.npy", np.zeros(2))
    np.savez(folder / "two.npz", np.zeros(2), np.zeros(2))
    jets = fasttag.read(folder / "test.h5")
    fasttag.write(folder / "bare.h5", fasttag.Jets(jets.p4, jets.offsets))
    assert main([part.format(folder) for part in command]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"fasttag {command[0]}: ")
    assert error.count("\n") == 1
    assert not (folder / "out.h5").exists()


@pytest.mark.parametrize("error", [TypeError, NotImplementedError, FloatingPointError, fasttag.CorruptFileError])
def test_errors_of_operations_are_one_line(capsys, monkeypatch, error):
    def fail(*_, **__):
        raise error("pad: no\n    kernel")

    monkeypatch.setattr(fasttag.models, "build", fail)
    assert main(["models"]) == 2
    assert capsys.readouterr().err == "fasttag models: pad: no kernel\n"


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("argparse.ArgumentParser.parse_args", "fasttag: stopped"),
        ("fasttag.io.read", "fasttag train: stopped; go on with --resume"),
        ("fasttag.io.iter_read", "fasttag process: stopped"),
    ],
)
def test_interrupt_is_one_line(folder, capsys, monkeypatch, where, line):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    command = ["process", str(folder / "val.h5"), "--out", str(folder / "out.h5")]
    assert main(["train", "t.h5", "--val", "v.h5", "--model", "pfn"] if "train" in line else command) == 130
    assert capsys.readouterr().err == line + "\n"
    assert not list(folder.glob("*out.h5*"))


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--val", "{}/val.h5", "--val", "{}/test.h5", "--model", "pfn", "--out", "{}/new", "{}/train.h5"],
        ["evaluate", "--run", "{}/run1", "--out", "{}/three", "{}/test.h5"],
        ["process", "--features", "kinematics", "{}/val.h5", "--out", "{}/featured.h5"],
    ],
)
def test_options_take_one_value_each(folder, command):
    epochs = ["--epochs", "1"] if command[0] == "train" else []
    assert main([part.format(folder) for part in [*command, *epochs]]) == 0


CORE_ONLY = """
import contextlib, io, json, sys, warnings
warnings.filterwarnings("ignore", "Numba extension module 'awkward")  # masked here, but its entry point is installed
for name in ("torch", "tqdm", "matplotlib", "safetensors", "sklearn", "awkward", "uproot", "pyarrow"):
    sys.modules[name] = None
import fasttag
from fasttag.cli import main
jets = fasttag.read(fasttag.io.sample_path(), stop=100)
assert fasttag.pixelate(jets).shape == (100, 1, 40, 40)
assert fasttag.kinematics(jets).pt.size == jets.counts.sum()
fasttag.write("some.h5", jets)
found = {}
for line in (
    "info", "process some.h5 --out out.h5 --features kinematics", "models", "demo",
    "train missing.h5 --val missing.h5 --model pfn", "evaluate missing.h5 --run missing",
    "verify missing.h5 --checkpoint missing",
):
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
        found[line.split()[0]] = main(line.split()), error.getvalue()
assert fasttag.read("out.h5").columns["pt"].size == jets.counts.sum()
print(json.dumps(found))
"""


def test_core_only_install(tmp_path, monkeypatch):
    """Without any extra: files and operations work, the rest names the extra before it reads or writes anything."""
    monkeypatch.chdir(tmp_path)
    found = json.loads(python(CORE_ONLY))
    assert found.pop("info") == found.pop("process") == [0, ""]
    assert set(found) == {"models", "demo", "train", "evaluate", "verify"}
    for command, (status, error) in found.items():
        line = f"fasttag {command}: torch is needed here: install fasttag-hep with the extra torch\n"
        assert (status, error) == (2, line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", "some.h5"]


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
def test_demo(tmp_path, capsys, monkeypatch):
    threads = torch.get_num_threads()
    used = set()
    compare = demo._compare
    monkeypatch.setattr(demo, "_compare", lambda *case: used.add(torch.get_num_threads()) or compare(*case))
    assert main(["demo", "--out", str(tmp_path), "--epochs", "3"]) == 0
    assert (used, torch.get_num_threads()) == ({1}, threads)
    printed = capsys.readouterr().out
    assert "pixelate 40x40" in printed
    assert "one thread" in printed
    assert "AUC" in printed
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page.split("base64", 1)[0]  # nothing is loaded from elsewhere


def readme_example(which):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    return compile(re.findall(r"```python\n(.*?)```", readme, re.S)[which], "README.md", "exec")


def test_readme_example(capsys):
    exec(readme_example(0), {})
    assert "Rejection" in capsys.readouterr().out


def test_readme_imports(jets64):
    """The three calls that go on working after their import line has changed."""
    jets = jets64.to(library="torch")
    p4 = jets.to_padded(82)[0].transpose(1, 2)
    k = fasttag.kinematics(jets64[:1])
    found = {
        "p4": p4,
        "points": torch.randn(64, 2, 82),
        "jet": np.stack([k.pt, k.rapidity, k.phi], 1),
        "score": torch.rand(64, requires_grad=True),
        "mass": fasttag.kinematics(fasttag.jet_p4(jets)).mass,
        "weight": torch.ones(64),
        "loss": 0.0,
    }
    exec(readme_example(1), found)
    assert found["index"].shape == (64, 82, 16) and found["features"].shape == (64, 4, 82, 82)
    assert found["image"].sum() == pytest.approx(1)
    assert torch.autograd.grad(found["loss"], found["score"])[0].abs().max() > 0
