"""Writes ``report.html``: the report of a study in one self-contained page.

The template engine escapes all text, the script reads its numbers from a JSON block that no text
can end early, and the page's content security policy forbids other scripts and all requests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from fmnist.reports import averaging, commands, effects, failures, words
from fmnist.reports.findings import Findings
from fmnist.reports.html import curves, tables
from fmnist.reports.html.winner import winner_parts
from fmnist.reports.markdown import caption
from fmnist.rundir.files import write_text
from fmnist.utils.passwords import starred_text

TEMPLATES = Path(__file__).parent / "templates"

ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    # A Markup is made by this module and escaped.
    finalize=lambda value: words.printable(value) if type(value) is str else value,
)
ENVIRONMENT.filters |= {
    # The line may break after each comma. The entities of an escaped text have none.
    "breakable": lambda text: escape(words.printable(text)).replace(",", Markup(",<wbr>")),
    "decimals": words.decimals,
    "duration": words.duration,
    "exact": "{:.8g}".format,
    "percent": "{:.1%}".format,
    "thousands": "{:,.0f}".format,
}
ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
TEMPLATE = ENVIRONMENT.get_template("report.html.jinja")


def write_html(
    out: Path,
    findings: Findings,
    phases: Mapping[str, float] | None = None,
    averaged: averaging.Averaged | None = None,
) -> Path:
    """Write ``out/report.html`` atomically: when that fails, the old file stays.

    Without a winner, its outputs or any test image the page has no confusion matrix and no
    calibration.

    Args:
        out: the run's folder.
        findings: what the study found.
        phases: seconds by phase of the run; None when they are not known.
        averaged: what the mean of several models gains, for a section.

    Returns:
        The path of the file.

    Raises:
        ValueError: The winner's outputs and the test set differ in their number of examples.
    """
    out, study = Path(out), findings.config
    # A style or script block ends at the first end tag.
    style, script = ((TEMPLATES / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    assert "</" not in style + script, "a style or script would end its own block"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    brought = [e for e in effects.effects(study, findings.results) if e.pairs > 1]
    text = TEMPLATE.render(
        study=study,
        when=words.when(study),
        trials=findings.results,
        comparison=findings.comparison,
        tested=len(findings.dataset.test.labels),
        winner=findings.winner,
        words=words,
        advice=failures.advice(study, findings.results),
        caption=caption,
        results=tables.results_table(findings),
        curves=curves.curves(study, findings.results),
        heat=tables.heat_map(findings),
        seeds=tables.seeds_table(findings),
        averaged=averaged and averaging.rows(averaged),
        gained=averaged and averaging.sentence(averaged),
        effects=brought,
        brought=effects.sentence(brought),
        time=tables.time_table(findings, phases or {}),
        facts={name: starred_text(text) for name, text in findings.provenance.items() if text},
        commands=[words.one_line(line) for line in commands.of_report(out, findings.storage)],
        where=commands.WHERE,
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        **winner_parts(findings),
    )
    path = out / "report.html"
    write_text(path, text)
    return path
