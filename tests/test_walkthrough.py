"""The blocks of docs/walkthrough.md run in order and print the shown output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "docs" / "walkthrough.md"
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+")
ROUNDING = 0.05  # training rounds differently from machine to machine


def test_every_block_prints_the_shown_output(capsys, tmp_path):
    blocks = re.findall(r"```(python|text)\n(.*?)```", PATH.read_text(encoding="utf-8"), re.DOTALL)
    variables = {"out": tmp_path}
    printed, checked = "", 0
    for language, text in blocks:
        if language == "python":
            exec(compile(text, str(PATH), "exec"), variables)
            printed = capsys.readouterr().out
            continue
        checked += 1
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", text), printed
        ours, shown = (list(map(float, NUMBER.findall(t))) for t in (printed, text))
        assert ours == pytest.approx(shown, abs=ROUNDING), printed
    assert checked == sum(language == "python" for language, _ in blocks)
