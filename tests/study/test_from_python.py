"""``fmnist.run_study`` in Python: what a study may be given as, and its progress."""

from __future__ import annotations

import pytest
import torch
from strategies import tiny_data, tiny_study

import fmnist
from fmnist.reports.terminal import Progress
from fmnist.tuning.events import BatchesTrained, EpochFinished, GroupStarted, TrialFinished
from fmnist.utils.errors import UserError

CONFIG = tiny_study("python", epochs=2)
DATA = tiny_data()

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "study.toml"
    path.write_text(CONFIG.to_toml())
    return path


def numbers(results):
    """The results without their times."""
    return [(r.number, r.point, r.history, r.test_accuracy) for r in results]


def test_a_study_is_a_dictionary_or_the_path_of_a_file(file, tmp_path):
    found = fmnist.run_study(CONFIG.to_dict(), tmp_path / "run", dataset=DATA)
    assert numbers(fmnist.run_study(str(file), tmp_path / "other", dataset=DATA)) == numbers(found)
    assert fmnist.run_study(file, tmp_path / "run", dataset=DATA) == found
    assert fmnist.run_study(CONFIG, tmp_path / "run", dataset=DATA) == found
    run = fmnist.load_run(tmp_path / "run")
    assert run.config == CONFIG
    last = [result.final.validation_accuracy for result in found]
    assert run.results.validation_accuracy.tolist() == last


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"study": {"epochs": 0}}, "study: epochs = 0: must be an integer from 1"),
        ({"grid": {"lr": [0.1]}}, "did you mean learning_rate"),
        ({"epochs": 2}, "belongs in the table .study."),
        ("nowhere.toml", "nowhere.toml: cannot be read"),
        (5, "must be tables study"),
        (None, "must be tables study"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(study, said, tmp_path):
    with pytest.raises(UserError, match=said) as raised:
        fmnist.run_study(study, tmp_path / "run", dataset=DATA)
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_progress_is_shown_when_asked(tmp_path, capsys):
    fmnist.run_study(CONFIG, tmp_path / "quiet", dataset=DATA)
    fmnist.run_study(CONFIG, tmp_path / "off", dataset=DATA, progress=False)
    assert capsys.readouterr() == ("", "")
    fmnist.run_study(CONFIG, tmp_path / "loud", dataset=DATA, progress=True)
    out, err = capsys.readouterr()
    assert "epoch 2/2" in out
    assert "trial 1" in out
    assert err == ""
    fmnist.run_study(CONFIG, tmp_path / "loud", dataset=DATA, progress=True)
    assert "is complete: nothing to train" in capsys.readouterr().out


def test_a_function_gets_every_event(tmp_path):
    events = []
    results = fmnist.run_study(CONFIG, tmp_path, dataset=DATA, progress=events.append)
    others = [type(e) for e in events if not isinstance(e, TrialFinished | BatchesTrained)]
    assert others == [GroupStarted, EpochFinished, EpochFinished]
    assert any(isinstance(event, BatchesTrained) for event in events)
    ended = [event.result for event in events if isinstance(event, TrialFinished)]
    assert sorted(numbers(ended)) == numbers(results)


def test_an_error_of_the_function_ends_the_run_and_it_continues(tmp_path):
    def breaks(event):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fmnist.run_study(CONFIG, tmp_path, dataset=DATA, progress=breaks)
    assert len(fmnist.run_study(CONFIG, tmp_path, dataset=DATA)) == 2


def test_a_display_is_opened_and_closed_by_its_caller(tmp_path):
    class Display(Progress):
        said = ()

        def __enter__(self):
            raise AssertionError

        def message(self, text):
            self.said = (*self.said, text)

    display = Display()
    fmnist.run_study(CONFIG, tmp_path, dataset=DATA, progress=display)
    assert "device cpu" in display.said


def test_padding_is_an_axis_of_numbers_and_a_word(tmp_path):
    study = {
        "study": {"name": "padding", "epochs": 1, "holdout": 0},
        "model": {"channels": [2, 2, 2], "hidden": [4], "kernel_size": 3},
        "grid": {"padding": [0, 2, "same"]},
    }
    found = fmnist.run_study(study, tmp_path / "run", dataset=DATA)
    assert [r.point["padding"] for r in found] == [0, 2, "same"]
    assert {r.state for r in found} == {"COMPLETE"}
    assert fmnist.run_study(study, tmp_path / "run", dataset=DATA) == found
    run = fmnist.load_run(tmp_path / "run")
    assert run.results.padding.astype(str).tolist() == ["0", "2", "same"]
    images = DATA.test.images
    logits = run.module()(images / 255)
    chances = torch.from_numpy(run.predict(images))
    torch.testing.assert_close(logits.double().softmax(dim=1), chances, rtol=0, atol=1e-5)
