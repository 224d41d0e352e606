"""The blocks of docs/walkthrough.md, pasted in order, print the shown output."""

from __future__ import annotations

import code
import re
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "docs" / "walkthrough.md"
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+")
ROUNDING = 0.05  # training rounds differently from machine to machine
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", PATH.read_text(encoding="utf-8"), re.DOTALL)


def test_every_block_prints_the_shown_output(capsys, tmp_path, monkeypatch):
    """In the strictest place, Python's prompt, where a blank line ends a block of code."""
    monkeypatch.chdir(tmp_path)
    prompt, checked = code.InteractiveConsole(), 0
    for language, text in BLOCKS:
        if language == "python":
            waits = False
            for line in [*text.splitlines(), ""]:  # and Enter at the end
                waits = prompt.push(line)
            assert not waits, text
            printed, wrong = capsys.readouterr()
            assert not wrong
            continue
        checked += 1
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", text), printed
        ours, shown = (list(map(float, NUMBER.findall(t))) for t in (printed, text))
        assert ours == pytest.approx(shown, abs=ROUNDING), printed
    assert checked == sum(language == "python" for language, _ in BLOCKS)


def test_the_blocks_are_one_file():
    compile("".join(text for language, text in BLOCKS if language == "python"), str(PATH), "exec")
