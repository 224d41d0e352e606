"""The choice of a convolution back end: by the table, by force, or by timing all of them once."""

from __future__ import annotations

import pytest
import torch
from strategies import NUMBERS, SMALL, random_split

from fmnist.engine import autotune, trainer
from fmnist.functional.kernels import conv

CPU = torch.device("cpu")


@pytest.mark.parametrize("quickest", ["grouped", "lanes", "unfold"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_clock_decides_where_no_table_does(quickest, shared, monkeypatch):
    """On shapes of the network, with this computer in place of a GPU."""
    monkeypatch.setattr(conv, "MEASURED", {})
    autotune.timed.cache_clear()
    seen = []
    plain = conv.backend
    monkeypatch.setattr(conv, "backend", lambda device: seen.append(plain(device)) or seen[-1])

    def clock(run):
        seen.clear()
        run()
        return 1.0 if set(seen) == {quickest} else 2.0

    monkeypatch.setattr(autotune, "_gpu_milliseconds", clock)
    assert autotune.convolution(SMALL, 4, 3, CPU, shared) == quickest
    seen.clear()
    assert autotune.convolution(SMALL, 4, 3, CPU, shared) == quickest
    assert seen == []  # remembered, not timed again
    autotune.timed.cache_clear()


def test_a_table_or_force_saves_the_timing():
    def choice():
        return autotune.convolution(SMALL, 4, 3, CPU, shared=True)

    assert choice() == "blocks"
    with conv.forced("unfold"):
        assert choice() == "unfold"
    assert autotune.timed.cache_info().currsize == 0


def test_a_fit_uses_the_choice(monkeypatch):
    group = trainer.Group(
        SMALL, "adam", False, 8, (trainer.Lane(0, NUMBERS), trainer.Lane(1, NUMBERS))
    )
    splits = random_split(16), random_split(8, 1)
    asked = []
    monkeypatch.setattr(autotune, "convolution", lambda *args: asked.append(args) or "unfold")
    (epoch,) = trainer.fit(group, *splits, epochs=1)
    assert asked == [(SMALL, 8, 2, CPU, False)]  # once: when the step is traced
    with conv.forced("unfold"):
        monkeypatch.undo()
        (expected,) = trainer.fit(group, *splits, epochs=1)
    assert torch.equal(epoch.train.loss_sum, expected.train.loss_sum)
