"""What the README and the walk-through show, works."""

from __future__ import annotations

import re
from pathlib import Path

from fmnist.config import study as studies

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_runs_and_prints_what_it_says(capsys):
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "torch.Size([3, 12, 1, 5, 5])"


def test_the_study_file_is_a_study(tmp_path):
    (text,) = blocks("toml")
    path = tmp_path / "decay.toml"
    path.write_text(text, encoding="utf-8")
    assert studies.load(path).size == 36


def test_the_tests_that_are_named_are_there():
    for page in (README, README.parent / "docs" / "reliability.md"):
        for name in re.findall(r"\btests/[\w/]+\.py", page.read_text(encoding="utf-8")):
            assert (README.parent / name).exists(), f"{page.name}: {name}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
