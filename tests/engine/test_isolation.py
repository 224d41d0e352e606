"""The caller's settings of torch neither change the numbers of training nor are they changed."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import optree
import optuna
import pytest
import torch
from strategies import random_split

import fmnist
from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import Dataset
from fmnist.engine.evaluation import evaluate
from fmnist.functional.types import ModelConfig
from fmnist.reference import fit_reference
from fmnist.utils.device import cuda_arithmetic
from fmnist.utils.isolation import torch_defaults

SPLITS = random_split(60), random_split(20, 1)
MODEL = fmnist.cnn(channels=[3, 4], hidden=[7, 5], dropout=0.3)
LANES = {"learning_rate": [0.01, 0.001], "seed": [0, 1]}


@contextlib.contextmanager
def changed(read, write, value):
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def matmul_precision(value):
    read = torch.get_float32_matmul_precision
    return changed(read, torch.set_float32_matmul_precision, value)


def onednn_precision():
    part = torch.backends.mkldnn.matmul
    return changed(
        lambda: part.fp32_precision, lambda value: setattr(part, "fp32_precision", value), "bf16"
    )


SETTINGS = {
    "nothing": contextlib.nullcontext,
    "float64": lambda: changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16": lambda: changed(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "anomaly": torch.autograd.detect_anomaly,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "deterministic": lambda: changed(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "matmul medium": lambda: matmul_precision("medium"),
    "matmul high": lambda: matmul_precision("high"),
    "oneDNN": onednn_precision,
    "other threads": lambda: changed(
        torch.get_num_threads, torch.set_num_threads, 1 + torch.get_num_threads() % 2
    ),
}


def settings_now():
    """Everything that a caller may have set."""
    backends = torch.backends
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_anomaly_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        backends.mkldnn.matmul.fp32_precision,
        backends.mkldnn.conv.fp32_precision,
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        torch.get_num_threads(),
        hash(str(random.getstate())),
        hash(str(np.random.get_state())),
        torch.get_rng_state().tolist() if torch.get_default_device().type == "cpu" else None,
        optuna.logging.get_verbosity(),
    )


def fit(**options):
    return fmnist.fit(MODEL, fmnist.adam, *SPLITS, lanes=LANES, batch_size=25, **options)


def same(a, b):
    return all(map(torch.equal, optree.tree_leaves(a[1:]), optree.tree_leaves(b[1:])))


@pytest.fixture(scope="module")
def plain():
    return list(fit(epochs=2))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", SETTINGS)
def test_fit_computes_the_same_under_any_setting_and_changes_none(name, plain):
    with SETTINGS[name]():
        before = settings_now()
        epochs = fit(epochs=2)
        first = next(epochs)
        assert settings_now() == before  # while the generator is suspended
        ours = [first, *epochs]
        assert settings_now() == before
        tested = evaluate(MODEL, *ours[-1].train_state[:2], SPLITS[1])
        assert settings_now() == before
    assert all(map(same, ours, plain))
    assert torch.equal(tested.loss_sum, plain[-1].validation.loss_sum)
    assert same(list(fit(epochs=2))[-1], plain[-1])  # and later


def test_data_and_state_of_inference_mode_can_be_used(plain):
    with torch.inference_mode():
        splits = [type(s)(*(t.clone() for t in s)) for s in SPLITS]
        state = optree.tree_map(torch.clone, plain[0].train_state)
    resume = fmnist.TrainerState(1, state)
    (ours,) = fmnist.fit(
        MODEL, fmnist.adam, *splits, lanes=LANES, batch_size=25, epochs=2, resume=resume
    )
    assert same(ours, plain[1])


@pytest.mark.parametrize("how", ["closed", "raises"])
def test_settings_are_as_before_when_the_generator_ends_early(how):
    with SETTINGS["float64"](), torch.autocast("cpu", torch.bfloat16):
        before = settings_now()
        if how == "closed":
            epochs = fit(epochs=9)
            next(epochs)
            epochs.close()
        else:
            with pytest.raises(ValueError, match="batch_size"):
                next(fmnist.fit(MODEL, fmnist.adam, *SPLITS, lanes=LANES, batch_size=0))
        assert settings_now() == before


def test_switches_of_cuda_are_restored(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    backends = torch.backends

    def switches():
        read = []
        for ask in (
            torch.get_float32_matmul_precision,
            lambda: backends.cuda.matmul.allow_tf32,
            lambda: backends.cudnn.allow_tf32,
        ):
            try:
                read.append(ask())
            except RuntimeError:  # torch has two switches for the same, which disagree
                read.append("mixed")
        parts = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)
        return [*read, *(part.fp32_precision for part in parts)]

    def matmul_part():
        part = backends.cuda.matmul
        return changed(
            lambda: part.fp32_precision, lambda v: setattr(part, "fp32_precision", v), "tf32"
        )

    for setting in (contextlib.nullcontext, lambda: matmul_precision("medium"), matmul_part):
        for tf32 in (False, True):
            with setting():
                before = switches()
                with cuda_arithmetic(tf32=tf32):
                    precision = "tf32" if tf32 else "ieee"
                    assert backends.cuda.matmul.fp32_precision == precision
                    assert backends.cudnn.conv.fp32_precision == precision
                assert switches() == before


def test_reference_leaves_the_random_state_to_the_caller():
    numbers = {
        "learning_rate": 0.001,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
    }
    config = ModelConfig((3, 4), (7,), dropout=0.3)

    def losses(disturb):
        found = []
        state = torch.get_rng_state()
        for epoch in fit_reference(
            config, "adam", numbers, *SPLITS, batch_size=25, seed=0, epochs=3
        ):
            assert torch.equal(torch.get_rng_state(), state)
            found.append(epoch.train.loss_sum.item())
            if disturb:
                torch.rand(5)
                state = torch.get_rng_state()
        return found

    assert losses(disturb=True) == losses(disturb=False)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_run_study_computes_the_same_and_changes_nothing(tmp_path):
    data = Dataset(*(random_split(n, n) for n in (120, 60)), "noise")
    config = StudyConfig(
        name="tiny", epochs=1, holdout=20, model=ModelConfig((3, 4), (7,)),
        grid={"learning_rate": (0.01, 0.001)}, batch_size=50,
    )  # fmt: skip
    plain = fmnist.run_study(config, tmp_path / "plain", dataset=data)
    with SETTINGS["float64"](), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        before = settings_now()
        ours = fmnist.run_study(config, tmp_path / "ours", dataset=data)
        assert settings_now() == before
    assert [r.history for r in ours] == [r.history for r in plain]
    assert [r.test_loss for r in ours] == [r.test_loss for r in plain]


FORKED = """
import multiprocessing, sys
import fmnist
sys.path.insert(0, sys.argv[1])
from test_isolation import fit
from fmnist.utils.errors import UserError

def child(queue):
    try:
        list(fit(epochs=1))
    except UserError as error:
        queue.put(str(error))
    else:
        queue.put("trained")

context = multiprocessing.get_context("fork")
for wanted in ("trained", "forked"):
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,), daemon=True)
    process.start()
    said = queue.get(timeout=100)
    assert wanted in said, said
    process.join()
    list(fit(epochs=1))
print("ended")
"""


def test_fork_after_training_is_refused():
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(here)],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.stdout == "ended\n", done.stderr


def test_defaults_hold_within_the_block():
    with SETTINGS["float64"](), torch.inference_mode(), torch.device("meta"), torch_defaults():
        assert torch.empty(1).dtype == torch.float32
        assert torch.empty(1).device.type == "cpu"
        assert not torch.is_inference_mode_enabled()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", ["float64", "anomaly", "oneDNN"])
def test_settings_of_all_threads_are_restored_by_the_last_one(name):
    def seen():
        onednn = torch.backends.mkldnn.matmul.fp32_precision
        return torch.get_default_dtype(), torch.is_anomaly_enabled(), onednn == "bf16"

    entered, leave = threading.Event(), threading.Event()

    def other():
        with torch_defaults():
            entered.set()
            leave.wait(10)
            return seen()

    with SETTINGS[name](), ThreadPoolExecutor(1) as pool:
        before = seen()
        with torch_defaults():
            still = pool.submit(other)
            entered.wait(10)
            within = seen()
        leave.set()
        assert still.result() == within == (torch.float32, False, False)
        assert seen() == before != within
