"""The command ``compare``: the page of ``report`` for several models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae.apps.command import command
from monai_diffae.apps.pages.report import page_result
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import PageRun, Topics
from monai_diffae.apps.steps import Steps
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    from monai_diffae.apps import html
    from monai_diffae.apps.pages import data as page_data
    from monai_diffae.apps.pages import sections


@command
def compare(
    out: Path,
    *,
    bundle: Sequence[Path],
    cohort: Path | None = None,
    targets: Sequence[str] = (),
    run: PageRun = PageRun(),
) -> Result:
    """Show what several models have learnt, on one page: curves, the same cases, quality, maps, probes side by side.

    ``out/compare.html`` is a page like that of ``report``. All models see the same cases, and ``evaluate`` compares
    them with the first one, case by case. The commands' results are in ``out``, in one folder per model.

    Args:
        out: Folder for the page and all results.
        bundle: Folders of two or more trained bundles; the others are compared with the first.
        cohort: Folder, CSV/TSV or MONAI datalist; by default only the trainings are compared.
        targets: Label columns to predict; by default those that are found.

    Returns:
        The folder, the ``page``, and the ``outcomes`` of all steps.

    Raises:
        ConfigError: there are fewer than two bundles, one is not trained, or a target is no label.
    """
    if len(bundle) < 2:
        raise ConfigError("bundle: one model cannot be compared; give two or more, or use report")
    from monai_diffae.apps.evaluation.evaluate import unique_names

    steps = Steps(journal=out / page_data.JOURNAL)
    models = [
        page_data.ReportData(path, out / name, cohort, Topics(targets), run, steps, name, root=out)
        for path, name in zip(bundle, unique_names(bundle), strict=True)
    ]
    _check_kinds({model.name: model.describe() for model in models})
    for model in models:
        model.run_common(cases=models[0].shown_cases)
    if models[0].result("embeddings") is not None:
        models[0].evaluate(bundle, out)
    page = html.write_page(out / "compare.html", "report.html", embed=run.embed, **sections.Report(models).values())
    return page_result(page, steps.outcomes)


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
                f"bundle: {first} takes {kind} and {name} takes {other}, so they cannot see the same cases; compare "
                "models of one kind"
            )
