"""The figures do not depend on the user's matplotlib: backend, rc files, styles, fonts, threads."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import draw_two
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import seaborn as sns
from draw_two import draw
from matplotlib.font_manager import fontManager


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("expected"))


ODD = """\
text.usetex: True
font.family: serif
font.size: 30
axes.grid: False
savefig.dpi: 20
savefig.bbox: tight
savefig.facecolor: black
figure.constrained_layout.use: True
axes.prop_cycle: cycler('color', ['r'])
"""
BROKEN = b"font.size: 10\nlines.width: \xff\n"

SETTINGS = {
    "unknown backend": ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, {}),
    "backend that is not there": ({"MPLBACKEND": "module://nowhere"}, {}),
    "odd rc file": ({"MATPLOTLIBRC": "odd"}, {"odd": ODD.encode()}),
    "wrong values": ({}, {"matplotlibrc": b"nonsense: 3\nfont.size: large\nbackend: nonsense\n"}),
    "rc file that is no text": ({}, {"matplotlibrc": BROKEN}),
    "style that is no text": ({"MPLCONFIGDIR": "."}, {"stylelib/mine.mplstyle": BROKEN}),
    "unknown locale": ({"LC_ALL": "xx_YY"}, {"matplotlibrc": b"axes.formatter.use_locale: True"}),
}


@pytest.mark.parametrize(("env", "content"), SETTINGS.values(), ids=SETTINGS)
def test_settings_of_the_user_do_not_matter(env, content, expected, tmp_path):
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    script = Path(draw_two.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "drawn"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, **env, "PYTHONPATH": str(script.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = [(tmp_path / "drawn" / f"{name}.png").read_bytes() for name in ("curves", "heatmap")]
    assert drawn == expected


STATES = {
    "rc": lambda: mpl.rcParams.update({"font.size": 40, "text.usetex": True, "lines.linewidth": 9}),
    "style": lambda: plt.style.use("dark_background"),
    "xkcd": lambda: mpl.rcParams.update({"path.sketch": (1, 100, 2), "font.family": "serif"}),
    "seaborn": lambda: sns.set_theme("poster", "dark", "husl", "serif", color_codes=True),
    "backend": lambda: mpl.rcParams.update({"backend": "module://nowhere"}),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_state_of_the_process_does_not_matter_and_stays(change, expected, tmp_path):
    with mpl.rc_context():
        backend = mpl.rcParams._get("backend")
        try:
            change()
            before = dict.copy(mpl.rcParams)
            assert draw(tmp_path) == expected
            assert dict.copy(mpl.rcParams) == before
        finally:
            mpl.rcParams._set("backend", backend)
            sns.set_color_codes("reset")


def test_fonts_of_the_machine_do_not_matter(expected, tmp_path, monkeypatch):
    serif = next(font for font in fontManager.ttflist if font.name == "DejaVu Serif")
    others = [dataclasses.replace(serif, name=name) for name in ("Arial", "DejaVu Sans")]
    monkeypatch.setattr(fontManager, "ttflist", [others[0], *fontManager.ttflist, others[1]])
    fontManager._findfont_cached.cache_clear()
    try:
        assert draw(tmp_path) == expected
    finally:
        fontManager._findfont_cached.cache_clear()


def test_two_threads_draw_the_same(expected, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        drawn = [*pool.map(draw, [tmp_path / str(number) for number in range(8)])]
    assert drawn == [expected] * 8
