"""The page: what a report shows, put into its templates."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lit_gamma.comparison import findings
from lit_gamma.comparison.alignment import Comparison
from lit_gamma.comparison.bootstrap import RESAMPLES, SHARES
from lit_gamma.comparison.charts import NAMES, probe_charts, role_charts, task_charts, weight_charts
from lit_gamma.comparison.findings import number, readable, step_number
from lit_gamma.comparison.headline import headlines
from lit_gamma.comparison.numbers import Numbers
from lit_gamma.comparison.probe_text import probe_text
from lit_gamma.comparison.runs import Runs
from lit_gamma.comparison.settings import differing, flat
from lit_gamma.comparison.sweep_runs import SweepRuns
from lit_gamma.comparison.sweep_view import MeasureView, edge
from lit_gamma.comparison.token_panels import final_rows, learnt_rows, loss_panels, rows_of
from lit_gamma.trajectory.phase_words import phases_in_words

MOST_TASKS = 4
"""Charts of losses and answers on the first screen; others are in a section."""

_OF_ONE_RUN = ("model.", "data.", "trainer.max_steps", "seed_everything")
"""What is shown of a single run's config."""


def render(
    side_by_side: Runs,
    numbers: Numbers,
    without_tokens: str = "",
    sweep: tuple[SweepRuns, list[MeasureView]] | None = None,
) -> str:
    """Makes the HTML.

    Args:
        side_by_side: The runs, a :class:`Comparison` if they followed the same tokens.
        numbers: What was computed of them.
        without_tokens: Why the page has no tokens, if it has none.
        sweep: The sweep that the runs are of, and what is shown of it.
    """
    tasks = list(task_charts(side_by_side, numbers.curves))
    asked = [chart for chart in tasks if chart.first][:MOST_TASKS]
    charts = [
        *asked,
        *probe_charts(side_by_side, numbers.differences),
        *weight_charts(side_by_side, numbers.weights),
    ]
    of_sweep = [chart for view in (sweep[1] if sweep else []) for chart in view.charts]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            runs=side_by_side.runs,
            labels=list(side_by_side.groups),
            group_of=side_by_side.group_of,
            names=side_by_side.names,
            headlines=headlines(side_by_side, numbers),
            charts=charts,
            others=[chart for chart in tasks if chart not in asked],
            n_lines=max(
                [len(side_by_side.groups), *(len(chart.keys) for chart in (*charts, *of_sweep))]
            ),
            configs=_configs(side_by_side),
            roles=role_charts(side_by_side, numbers.weights, numbers.phases),
            phases=rows_of(numbers.phases),
            phase_words=_phase_words(numbers),
            quantities=NAMES,
            metrics=_metrics(side_by_side),
            without_tokens=without_tokens,
            sweep=sweep,
            tokens=_tokens(side_by_side, numbers) if isinstance(side_by_side, Comparison) else None,
        )
    )


def environment() -> Environment:
    """Where the templates are, and what they may call."""
    environment = Environment(
        loader=PackageLoader("lit_gamma.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "steps": step_number, "readable": readable}
    environment.filters["breakable"] = _breakable
    environment.filters["edge"] = edge
    return environment


def _breakable(key: str) -> Markup:
    """A key that may go on in the next line after each of its parts."""
    shown = escape(key)
    for end in "/._":
        shown = shown.replace(end, Markup(f"{end}<wbr>"))
    return shown


def _tokens(comparison: Comparison, numbers: Numbers) -> dict[str, Any]:
    """What the part on tokens shows."""
    sets = comparison.tokens.groupby("set", observed=True)["block"]
    return {
        "n_tokens": len(comparison.tokens),
        "steps": comparison.steps,
        "probe": comparison.probe,
        "has_classes": "class" in comparison.tokens,
        "going_on": [run.path for run in comparison.runs if not (run.probe and run.probe.ended)],
        "singles": [label for label, of in comparison.groups.items() if len(of) == 1],
        "resamples": RESAMPLES,
        "shares": SHARES,
        "n_blocks": sets.nunique().to_dict(),
        "findings": findings.main_findings(comparison, numbers.parts, numbers.by_mean),
        "order_of_sets": findings.order_of_sets(numbers.learnt, SHARES[-1]),
        "panels": loss_panels(numbers.differences),
        "finals": final_rows(comparison, numbers.differences),
        "learnt": learnt_rows(comparison, numbers.learnt),
        "text": probe_text(comparison),
    }


def _phase_words(numbers: Numbers) -> dict[str, list[str]]:
    """The phases of each run in words."""
    if not len(numbers.phases):
        return {}
    of_runs = numbers.phases.groupby("run", sort=False)
    return {str(run): phases_in_words(of_run) for run, of_run in of_runs}


def _configs(side_by_side: Runs) -> dict[str, list[Any]]:
    """What differs between the configs; of a single run what it was made with."""
    if len(side_by_side.runs) > 1:
        return differing([run.config for run in side_by_side.runs])
    config = side_by_side.runs[0].config
    return {key: [value] for key, value in config.items() if key.startswith(_OF_ONE_RUN)}


def _metrics(side_by_side: Runs) -> dict[str, dict[str, list[Any]]]:
    """What the summaries hold, by the first part of the key: name to the value of each run."""
    flats = [flat(run.summary) for run in side_by_side.runs]
    found: dict[str, dict[str, list[Any]]] = {}
    for key in dict.fromkeys(key for of_run in flats for key in of_run):
        first, _, rest = key.partition(".")
        if rest and first not in ("phases", "findings", "validations"):
            found.setdefault(first, {})[rest] = [of_run.get(key) for of_run in flats]
    return found
