"""Writes ``report.html``: the report of a study in one self-contained page.

The template engine escapes all text, the script reads its numbers from a JSON block that no text
can end early, and the page's content security policy forbids other scripts and all requests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist.reports import words
from fmnist.reports.markdown import caption, view_commands
from fmnist.reports.sentences import protocol_sentences, winner_sentence
from fmnist.rundir.files import write_text
from fmnist.utils.passwords import starred_text

if TYPE_CHECKING:
    from markupsafe import Markup

    from fmnist.reports.findings import Findings

TEMPLATES = Path(__file__).parent / "templates"


def write_html(out: Path, findings: Findings, phases: Mapping[str, float] | None = None) -> Path:
    """Write ``out/report.html`` atomically: when that fails, the old file stays.

    Without a winner, its outputs or any test image the page has no confusion matrix and no
    calibration.

    Args:
        out: the run's folder.
        findings: what the study found.
        phases: seconds by phase of the run; None when they are not known.

    Returns:
        The path of the file.

    Raises:
        ValueError: The winner's outputs and the test set differ in their number of examples.
    """
    from fmnist.reports.html import curves, tables
    from fmnist.reports.html.winner import winner_parts

    out, study = Path(out), findings.config
    page = {
        "name": words.one_line(study.name),
        "note": words.protocol_note(study),
        "winner_sentence": winner_sentence(study, findings.winner),
        "protocol": protocol_sentences(study),
        "figures": _key_figures(findings),
        "metric": words.metric_name(study),
        "held_out": words.held_out(study),
        "results": tables.results_table(findings),
        "curves": curves.curves(study, findings.results),
        "heat": tables.heat_map(findings),
        "seeds": tables.seeds_table(findings),
        "time": tables.time_table(findings, phases or {}),
        "facts": {
            words.one_line(name): words.one_line(starred_text(value))
            for name, value in findings.provenance.items()
            if value
        },
        "toml": study.to_toml().rstrip(),
        "commands": [words.one_line(line) for line in view_commands(out, findings.storage)],
        "captions": {
            name: words.one_line(caption(name, study))
            for name in ("curves", "heatmap", "confusion", "confused pairs")
        },
        **winner_parts(findings),
    }
    path = out / "report.html"
    write_text(path, render(page))
    return path


def render(page: Mapping[str, Any]) -> str:
    """Render the template, with style and script inside the page.

    Args:
        page: the template's variables.

    Returns:
        The HTML text.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_printable,
    )
    environment.filters["breakable"] = _breakable
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    # A style or script block ends at the first end tag.
    style, script = (_block(name) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("report.html.jinja").render(
        page, style=Markup(style), script=Markup(script), script_hash=f"sha256-{digest}"
    )


def _printable(value: object) -> object:
    """Replace control characters in a text; some of them reverse the reading direction."""
    if type(value) is not str:  # a Markup is made by this module and escaped
        return value
    bad = "\N{REPLACEMENT CHARACTER}"
    return "".join(c if c.isprintable() or c == "\n" else bad for c in value)


def _breakable(text: str) -> Markup:
    """Let the line break after each comma, in the name of a configuration."""
    from markupsafe import Markup, escape

    # The entities of an escaped text have no commas.
    return Markup(escape(_printable(text)).replace(",", Markup(",<wbr>")))


def _block(name: str) -> str:
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    assert "</" not in text, f"{name} would end its own block"
    return text


def _key_figures(findings: Findings) -> list[tuple[str, str, str]]:
    """The numbers at the top of the page: name, value and remark of each."""
    study, results, winner = findings.config, findings.results, findings.winner
    failed = sum(result.state != "COMPLETE" for result in results)
    figures = []
    if winner is not None:
        by = "the winner's, after its last epoch"
        figures.append((words.metric_name(study), words.decimals(words.score(study, winner)), by))
        if words.metric_name(study) != "test accuracy":
            by = "the winner's; it had no part in the choice"
            by = "the winner's" if study.validation_is_test else by
            figures.append(("test accuracy", words.decimals(winner.test_accuracy), by))
    remark = f"{failed:,} failed" if failed else "all complete"
    if len(results) < study.size:
        remark += f", {study.size - len(results):,} not run"
    epochs = f"{study.epochs:,} epoch" + ("" if study.epochs == 1 else "s")
    figures.append(("trials", f"{len(results):,}", f"{remark}, {epochs} each"))
    if seconds := sum(result.seconds for result in results):
        figures.append(("time", words.duration(seconds), "all trials together"))
    return figures
