"""The command ``report``: one page about what a model has learnt, or several."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import PageRun, Topics
from monai_diffae.apps.steps import Outcome, Steps
from monai_diffae.apps.tracking import log_to_training
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    from monai_diffae.apps import html
    from monai_diffae.apps.pages import data as page_data
    from monai_diffae.apps.pages import sections

logger = logging.getLogger(__name__)


@command
def report(
    bundle: Path,
    out: Path,
    *,
    cohort: Path | None = None,
    against: Sequence[Path] = (),
    topics: Topics = Topics(),
    run: PageRun = PageRun(),
) -> Result:
    """Show what a model has learnt, alone or beside others, as one page: verdicts, scores, edits, a map, images.

    ``out/report.html`` opens in any browser and needs no network. Everything on it is made by ordinary commands, whose
    results are in ``out``, too; each section shows its command. The same command resumes after an interruption:
    complete steps are skipped. A step that fails is omitted, and the page says why.

    With ``against``, ``out/comparison.html`` shows several models: curves, the same cases, quality, maps and probes
    side by side. ``evaluate`` compares them with the first one, case by case, and each has a folder in ``out``.

    The page contains images of patients. It contains the ids of the table, but no folders and no patients' names.

    Args:
        bundle: Folder of a trained bundle.
        out: Folder for the page and all results.
        cohort: Folder, CSV/TSV or MONAI datalist; by default only the training and synthetic images are shown.
        against: Folders of other trained bundles, for images of the same kind, to show beside this one.

    Returns:
        The folder, the ``page``, and the ``outcomes`` of all steps.

    Raises:
        ConfigError: the bundle is not trained, or a target is no label.
        CohortError: there is no such cohort.
    """
    for folder in topics.explained:
        page_data.check_explained(folder, bundle)
    steps = Steps(journal=out / page_data.JOURNAL)
    if against:
        models = _collect_several([bundle, *against], out, cohort, topics, run, steps)
    else:
        name = "" if cohort is None else cohort.resolve().stem
        models = [page_data.ReportData(bundle, out, cohort, topics, run, steps, name)]
        models[0].collect()
    logger.info("\nWrite the page")
    values = sections.Report(models).values()
    file = out / ("comparison.html" if against else "report.html")
    page = html.write_page(file, "report.html", embed=run.embed, **values)
    if run.embed and not against:
        log_to_training(bundle, {}, [page], "report", is_private=True)
    return page_result(page, steps.outcomes, values["answers"])


def _collect_several(
    bundles: Sequence[Path], out: Path, cohort: Path | None, topics: Topics, run: PageRun, steps: Steps
) -> list[page_data.ReportData]:
    """The data of several models on the same cases."""
    from monai_diffae.apps.evaluation.evaluate import unique_names

    if topics != Topics(topics.targets):
        raise ConfigError("against: a page of several models is about targets only; omit scanner, repeat and explained")
    models = [
        page_data.ReportData(path, out / name, cohort, topics, run, steps, name, root=out)
        for path, name in zip(bundles, unique_names(bundles), strict=True)
    ]
    _check_kinds({model.name: model.describe() for model in models})
    for model in models:
        model.run_common(cases=models[0].shown_cases)
    if models[0].is_embedded:
        models[0].evaluate(bundles, out)
    return models


def _check_kinds(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the models take the same kind of images."""
    kinds = {
        name: f"{summary['spatial_dims']}D images of {counted(summary.get('in_channels', 1), 'channel')}"
        for name, summary in summaries.items()
    }
    (first, kind), *others = kinds.items()
    for name, other in others:
        if other != kind:
            raise ConfigError(
                f"against: {first} takes {kind} and {name} takes {other}, so they cannot see the same cases; compare "
                "models of one kind"
            )


def page_result(
    page: Path,
    outcomes: Sequence[Outcome],
    answers: Sequence[Mapping[str, str]] = (),
    next_lines: Sequence[tuple[str, str]] = (),
) -> Result:
    """The result of a command that ran others and wrote a page: what it found, and what can be done next."""
    failed = [outcome.step.title for outcome in outcomes if outcome.result is None]
    steps = [
        {
            "command": each.step.line,
            "seconds": round(each.seconds, 1),
            "error": each.error,
            "figures": None if each.result is None else each.result.json(),
        }
        for each in outcomes
    ]
    notes = [f"{each['text']} {each['advice']}".strip() for each in answers if not each["text"].startswith("Omitted")]
    size = page.stat().st_size
    return Result(
        page.parent,
        {"bytes": size, "steps": steps},
        notes,
        f"omitted: {', '.join(failed)}" if failed else None,
        [f"open {page} ({size / 1e6:.1f} MB)", *(f"{why}\n  {line}" for why, line in next_lines)],
        content={"page": page, "outcomes": outcomes, "next_lines": next_lines},
    )
