"""Training: it learns, it is reproducible, and it survives a kill at any moment."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fasttag import CheckpointError, Jets, jet_p4, kinematics, metrics, models, training
from fasttag.features import energy_flow
from fasttag.losses import DisCo
from fasttag.models.pfn import PFN
from fasttag.training import Settings, fit, read_tensors
from toys import toy_jets

SMALL = {"phi": [16, 16], "f": [16]}
SETTINGS = Settings(epochs=4, batch_size=50, lr=3e-3, patience=4)
DISCO = dataclasses.replace(SETTINGS, disco=2.0, against="mass")


@pytest.fixture(scope="module")
def toys() -> tuple[Jets, Jets]:
    return toy_jets(1000, 1), toy_jets(400, 2)


def weights(folder: Path, name: str = "last.safetensors") -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in read_tensors(folder / name)[0].items()}


def run(folder, toys, settings=SETTINGS, **options):
    return fit("pfn", *toys, folder, settings, config=SMALL, progress=False, **options)


def test_learns(tmp_path, toys):
    model = run(tmp_path, toys, Settings(epochs=15, batch_size=50, lr=3e-3))
    test = toy_jets(1000, 3)
    assert metrics.auc(models.score(model, test), test.labels["label"]) > 0.95
    history = history_of(tmp_path)
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    best = min(history, key=lambda entry: entry["val_loss"])
    found = training._validate(model, toys[1], None)
    assert found.keys() == {"val_loss", "val_auc"}
    assert found.items() <= best.items()  # best.safetensors is the epoch of the lowest loss


def mass_of(jets: Jets) -> np.ndarray:
    return kinematics(jet_p4(jets)).mass


def dcorr2(score: np.ndarray, jets: Jets) -> float:
    """dCorr^2 of score and mass over the background."""
    background = torch.from_numpy(jets.labels["label"] == 0)
    return DisCo(1.0)(torch.from_numpy(score), torch.from_numpy(mass_of(jets)), background).item()


def test_decorrelates(tmp_path, toys):
    """Like the same training without it, but a tenth of the correlation with the mass, at hardly any loss of AUC."""
    test = toy_jets(2000, 3)
    found = {}
    for name, settings in (("plain", SETTINGS), ("disco", DISCO)):
        model = run(tmp_path / name, toys, dataclasses.replace(settings, epochs=20, batch_size=200, lr=6e-3))
        score = models.score(model, test)
        found[name] = dcorr2(score, test), metrics.auc(score, test.labels["label"])
    assert found["disco"][0] < 0.1 * found["plain"][0]
    assert found["plain"][1] > found["disco"][1] > 0.93


def test_history_holds_both_terms(tmp_path, toys):
    model = run(tmp_path, toys, DISCO)
    best = min(history_of(tmp_path), key=lambda entry: entry["val_loss"])
    found = training._validate(model, training._labelled(toys[1], model, DISCO, "val"), DisCo(2.0))
    assert found.keys() == {"val_loss", "val_disco", "val_auc"}
    assert found.items() <= best.items()
    assert best["val_disco"] == pytest.approx(2.0 * dcorr2(models.score(model, toys[1]), toys[1]), rel=1e-6)
    entropy = training._validate(model, toys[1], None)["val_loss"]
    assert best["val_loss"] - best["val_disco"] == pytest.approx(entropy, rel=1e-6)
    assert all(entry["train_loss"] > entry["train_disco"] > 0 for entry in history_of(tmp_path))


def test_first_step_is_along_the_gradient_of_both_terms(tmp_path, toys):
    """AdamW's first moments after one step over all jets are 0.1 times the gradient."""
    train, _ = toys
    run(tmp_path, toys, dataclasses.replace(DISCO, epochs=1, batch_size=len(train)))
    state = read_tensors(tmp_path / "last.safetensors")[0]
    torch.manual_seed(DISCO.seed)
    model = models.build("pfn", **SMALL)
    label = torch.from_numpy(train.labels["label"])
    logits = model(train)
    score, mass = logits.softmax(1)[label == 0, 1], torch.from_numpy(mass_of(train)[train.labels["label"] == 0])
    (torch.nn.functional.cross_entropy(logits, label) + DisCo(2.0)(score, mass)).backward()
    for name, parameter in model.named_parameters():
        found = state[f"optimizer.{name}.exp_avg"]
        torch.testing.assert_close(found, 0.1 * parameter.grad, rtol=1e-3, atol=1e-4 * found.abs().max().item())


@pytest.mark.parametrize("signal", [0, 1])
def test_background_is_what_is_not_signal(toys, signal):
    model = models.build("pfn", **SMALL, signal=signal)
    jets = training._labelled(toys[1], model, DISCO, "val")
    score = models.score(model, toys[1])
    background = torch.from_numpy(toys[1].labels["label"] != signal)
    expected = DisCo(2.0)(torch.from_numpy(score), torch.from_numpy(mass_of(toys[1])), background).item()
    assert training._validate(model, jets, DisCo(2.0))["val_disco"] == pytest.approx(expected, rel=1e-6)


def test_against_a_label(tmp_path, toys):
    """A label by its name, of any kind of number; one called mass goes before the mass of the constituents."""
    masses = [mass_of(jets) for jets in toys]
    run(tmp_path / "computed", toys, DISCO)
    for name in ("tau21", "mass"):
        named = [jets.with_labels(**{name: mass.astype(np.float64)}) for jets, mass in zip(toys, masses)]
        run(tmp_path / name, named, dataclasses.replace(DISCO, against=name))
        assert weights(tmp_path / name) == weights(tmp_path / "computed")
    counts = [jets.with_labels(mass=jets.counts) for jets in toys]
    run(tmp_path / "counts", counts, DISCO)
    assert weights(tmp_path / "counts") != weights(tmp_path / "computed")


def test_against_is_checked(tmp_path, toys):
    train, val = toys
    with pytest.raises(
        ValueError, match=r"fit: against must be mass or a label of train, one of \['label'\], got 'tau'"
    ):
        run(tmp_path, toys, dataclasses.replace(DISCO, against="tau"))
    with pytest.raises(ValueError, match="fit: 'label' of train must be finite and not the same for all background"):
        run(tmp_path, toys, dataclasses.replace(DISCO, against="label"))
    with pytest.raises(ValueError, match="fit: train and val must both have the label 'mass' or both lack it"):
        run(tmp_path, (train, val.with_labels(mass=mass_of(val))), DISCO)
    bad = np.where(np.arange(len(val)) == 6, np.nan, mass_of(val))
    with pytest.raises(ValueError, match="fit: 'mass' of val must be finite"):
        run(tmp_path, (train.with_labels(mass=mass_of(train)), val.with_labels(mass=bad)), DISCO)
    assert not list(tmp_path.iterdir())


def test_disco_and_against_belong_together():
    for options in ({"disco": 1.0}, {"against": "mass"}):
        with pytest.raises(ValueError, match="Settings: disco and against must be given together, got"):
            Settings(**options)
    with pytest.raises(TypeError, match="Settings: against must be a string, got 1"):
        Settings(disco=1.0, against=1)


def test_same_seed_same_weights_other_seed_others(tmp_path, toys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, toys, Settings(epochs=2, batch_size=50, seed=seed))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


@pytest.mark.parametrize("settings", [SETTINGS, DISCO], ids=["plain", "disco"])
def test_resume_after_any_epoch(tmp_path, toys, monkeypatch, settings):
    run(tmp_path / "whole", toys, settings)
    calls = 0
    validate = training._validate

    def interrupted(*args):
        nonlocal calls
        calls += 1
        if calls in (2, 4):
            raise KeyboardInterrupt
        return validate(*args)

    monkeypatch.setattr(training, "_validate", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", toys, settings, resume=True)
    run(tmp_path / "parts", toys, settings, resume=True)
    assert calls == 6
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


TRANSFORMER = {"num_layers": 1, "num_cls_layers": 1, "embed_dims": (16,), "pair_embed_dims": (8,), "num_heads": 2}


def with_more(jets: Jets) -> Jets:
    """Columns and a label that recipes look at."""
    rng = np.random.default_rng(5)
    columns = {"charge": rng.integers(-1, 2, jets.p4.shape[1]), "kind": rng.integers(0, 5, jets.p4.shape[1])}
    columns = {name: column.astype(np.int8) for name, column in columns.items()}
    return jets.with_columns(**columns).with_labels(jet_pt=rng.uniform(500, 600, len(jets)))


def test_transformer_is_resumed(tmp_path, toys, monkeypatch):
    """All kinds of dropout depend on (seed, epoch) only; columns and labels reach the recipe."""
    jets = tuple(with_more(toy[:200]) for toy in toys)
    config = {"inputs": "kinpid", **TRANSFORMER}
    fits = lambda name: fit(
        "particle_transformer", *jets, tmp_path / name, SETTINGS, config=config, progress=False, resume=True
    )
    fits("whole")
    seen, validate = [], training._validate

    def interrupted(model, val, disco):
        seen.append(set(val.columns) | set(val.labels))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return validate(model, val, disco)

    monkeypatch.setattr(training, "_validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fits("parts")
    fits("parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert seen[0] == {"charge", "kind", "label", "jet_pt"}


def test_other_columns_and_labels_are_another_run(toys):
    """Those that recipes read; without any the number is that of 0.3.0."""
    jets = with_more(toys[1][:50])
    model, plain = models.build("pfn"), toys[1][:50]
    number = lambda jets: training._fingerprint(training._labelled(jets, model, SETTINGS, "train"))
    charge, jet_pt = jets.columns["charge"].copy(), jets.labels["jet_pt"].copy()
    charge[0] += 1
    jet_pt[0] += 1
    others = [plain, jets, jets.with_columns(charge=charge), jets.with_labels(jet_pt=jet_pt)]
    assert len({number(other) for other in others}) == 4
    assert number(jets.with_labels(else_=jet_pt)) == number(jets)
    crc = 0
    for array in (plain.compact().offsets, plain.labels["label"].astype(np.int64), *plain.compact().p4):
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    assert number(plain) == f"50 jets, crc32 {crc:08x}"


def test_early_stopping(tmp_path, toys):
    noise = toys[1].with_labels(label=np.random.default_rng(1).integers(0, 2, len(toys[1])))
    run(tmp_path, (toys[0], noise), Settings(epochs=40, batch_size=50, lr=1e-2, patience=2))
    losses = [entry["val_loss"] for entry in history_of(tmp_path)]
    assert len(losses) < 40
    assert len(losses) == int(np.argmin(losses)) + 1 + 2


def test_learning_rate():
    settings = Settings(lr=1.0, warmup=0.1)
    rates = [settings.learning_rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10:] == pytest.approx(0.5 + 0.5 * np.cos(np.pi * np.arange(90) / 90))


def test_shuffling_covers_every_jet_once_per_epoch(tmp_path, toys, monkeypatch):
    seen = []

    def record(jets):
        seen.append(jets.to(library="numpy"))
        return energy_flow(jets)

    monkeypatch.setattr(PFN, "recipe", staticmethod(record))
    run(tmp_path, toys, Settings(epochs=2, batch_size=64))
    trained = Jets.concatenate([b for b in seen if len(b) <= 64])
    energy = np.sort(np.add.reduceat(trained.p4[3], trained.offsets[:-1]))
    expected = np.sort(np.tile(np.add.reduceat(toys[0].p4[3], toys[0].offsets[:-1]), 2))
    assert len(trained) == 2 * len(toys[0])
    np.testing.assert_allclose(energy, expected, rtol=1e-5)


def test_other_runs_are_refused(tmp_path, toys):
    run(tmp_path, toys, Settings(epochs=1, batch_size=50))
    with pytest.raises(CheckpointError, match="holds a run already"):
        run(tmp_path, toys, Settings(epochs=1, batch_size=50))
    with pytest.raises(CheckpointError, match="is another run"):
        run(tmp_path, toys, Settings(epochs=2, batch_size=50), resume=True)
    with pytest.raises(CheckpointError, match="is another run"):
        run(tmp_path, (toys[0][:900], toys[1]), Settings(epochs=1, batch_size=50), resume=True)


def test_other_values_to_decorrelate_from_are_another_run(tmp_path, toys):
    settings = dataclasses.replace(DISCO, epochs=1)
    run(tmp_path, toys, settings)
    mass = mass_of(toys[0])
    val = toys[1].with_labels(mass=mass_of(toys[1]))
    run(tmp_path, (toys[0].with_labels(mass=mass), val), settings, resume=True)
    mass[0] += 1
    for other in (
        (toys[0].with_labels(mass=mass), val, settings),
        (*toys, dataclasses.replace(settings, disco=3.0)),
        (*toys, dataclasses.replace(settings, disco=0.0, against="")),
    ):
        with pytest.raises(CheckpointError, match="is another run"):
            run(tmp_path, other[:2], other[2], resume=True)


def test_runs_of_before_a_setting_are_resumed(tmp_path, toys):
    for epochs, folder in ((2, "whole"), (1, "old")):
        run(tmp_path / folder, toys, dataclasses.replace(SETTINGS, epochs=epochs, warmup=0.0))
    last = tmp_path / "old" / "last.safetensors"
    tensors, metadata = read_tensors(last)
    for name in ("disco", "against"):
        del metadata["run"]["settings"][name]
    training.write_tensors(last, tensors, metadata)
    before = weights(tmp_path / "old")
    run(tmp_path / "old", toys, dataclasses.replace(SETTINGS, epochs=1, warmup=0.0), resume=True)
    assert weights(tmp_path / "old") == before
    with pytest.raises(CheckpointError, match="is another run"):
        run(tmp_path / "old", toys, dataclasses.replace(DISCO, epochs=1, warmup=0.0), resume=True)


def test_config_with_tuples_and_numpy_integers_is_resumed(tmp_path, toys):
    for resume in (False, True):
        config = {"phi": (np.int64(8), 8), "f": (8,)}
        fit("pfn", *toys, tmp_path, Settings(epochs=1), config=config, progress=False, resume=resume)
    described = read_tensors(tmp_path / "last.safetensors")[1]["model"]
    assert described["config"] == {"phi": [8, 8], "f": [8]}


def test_finished_run_with_a_file_lost(tmp_path, toys):
    run(tmp_path, toys, Settings(epochs=1))
    history = (tmp_path / "history.json").read_bytes()
    (tmp_path / "history.json").unlink()
    run(tmp_path, toys, Settings(epochs=1), resume=True)
    assert (tmp_path / "history.json").read_bytes() == history
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"best\.safetensors: is missing beside last\.safetensors"):
        run(tmp_path, toys, Settings(epochs=1), resume=True)


def test_bad_labels(tmp_path, toys):
    train, val = toys
    for bad in (
        Jets(train.p4, train.offsets),
        train.with_labels(label=np.zeros(len(train), np.int64)),
        train.with_labels(label=np.arange(len(train))),
        train[:0],
    ):
        with pytest.raises(ValueError, match="fit: train must have"):
            fit("pfn", bad, val, tmp_path / "bad", progress=False)


@pytest.mark.parametrize("field", ["epochs", "batch_size", "lr", "patience", "seed", "warmup", "weight_decay", "disco"])
def test_settings_errors(field):
    with pytest.raises(ValueError, match=f"Settings: {field} must be"):
        Settings(**{field: -1})


@pytest.mark.parametrize("field", ["epochs", "batch_size", "lr", "patience", "seed", "warmup", "weight_decay", "disco"])
def test_settings_take_numbers_only(field):
    for bad in ("1", None, *([] if isinstance(getattr(Settings(), field), float) else [1.0])):
        with pytest.raises(TypeError, match=f"Settings: {field} must be an? "):
            Settings(**{field: bad})


def test_settings_of_numpy_numbers():
    settings = Settings(seed=np.int64(3), lr=np.float32(0.5), warmup=0)
    assert json.dumps(dataclasses.asdict(settings)) == json.dumps(
        dataclasses.asdict(Settings(seed=3, lr=0.5, warmup=0.0))
    )
    assert Settings(seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(ValueError, match=r"Settings: seed must be in \[0, 2\*\*63\), got"):
        Settings(seed=2**63)


def test_nan_in_the_validation_jets_is_an_error(tmp_path, toys):
    p4 = toys[1].p4.copy()
    p4[2, 5] = np.nan
    with pytest.raises(FloatingPointError, match="the validation loss became nan"):
        run(tmp_path, (toys[0], Jets(p4, toys[1].offsets, {}, toys[1].labels)))


def test_divergence_is_an_error(tmp_path, toys):
    with pytest.raises(FloatingPointError, match="the loss became"):
        run(tmp_path, toys, Settings(epochs=3, batch_size=50, lr=1e30, warmup=0.0))


EPOCHS = 40
CHILD = f"""
import sys
sys.path.insert(0, sys.argv[2])
from fasttag.training import Settings, fit
from toys import toy_jets
fit("pfn", toy_jets(1000, 1), toy_jets(400, 2), sys.argv[1],
    Settings(epochs={EPOCHS}, batch_size=20, patience={EPOCHS}), config={SMALL}, resume=True, progress=False)
"""


def history_of(folder: Path) -> list[dict]:
    path = folder / "history.json"
    return json.loads(path.read_text())["history"] if path.exists() else []


def wait_for_epoch(child: subprocess.Popen, folder: Path, epoch: int) -> float:
    """The moment at which `epoch` epochs are on disk."""
    while len(history_of(folder)) < epoch:
        assert child.poll() is None, f"the child ended before epoch {epoch}"
        time.sleep(0.002)
    return time.perf_counter()


def kill_and_resume(folder: Path, kills: int, seed: int) -> None:
    """Run the child, kill it `kills` times anywhere within an epoch, then let it end."""
    rng = random.Random(seed)
    command = [sys.executable, "-c", CHILD, str(folder), str(Path(__file__).parent)]
    for _ in range(kills):
        before = history_of(folder)
        child = subprocess.Popen(command)
        first, second = (wait_for_epoch(child, folder, len(before) + n) for n in (1, 2))
        time.sleep(rng.random() * (second - first))
        child.kill()
        assert child.wait() == -signal.SIGKILL  # it was alive
        after = history_of(folder)
        assert 2 <= len(after) < EPOCHS
        assert after[: len(before)] == before  # speeds included: resumed, not begun again
    killed = history_of(folder)
    subprocess.run(command, check=True)
    assert history_of(folder)[: len(killed)] == killed


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        assert weights(one, name) == weights(other, name), f"{name} of {other.name}"


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    kill_and_resume(tmp_path / "whole", 0, 0)
    kill_and_resume(tmp_path / "killed", 3, 1)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_and_resumed_often(tmp_path):
    kill_and_resume(tmp_path / "whole", 0, 0)
    for seed in range(20):
        kill_and_resume(tmp_path / f"killed-{seed}", 3, seed)
        assert_same_run(tmp_path / "whole", tmp_path / f"killed-{seed}")
