"""The section with edits along the directions of labels."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from monai_diffae.apps.report.charts import Axes, Series, line_chart
from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.sections import Section, number, omitted
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.web_page import joined


def edit_section(study: Study, media: Media) -> Section | None:
    """Edited cases, and what the model sees in them; None if no label was edited."""
    names = [name for name in study.outcomes if name.startswith(("edits/", "directions/"))]
    if not names:
        return None
    parts = [omitted(study.outcomes[name]) for name in names]
    for name in [each for each in names if each.startswith("edits/") and study.result(each) is not None]:
        direction = study.result(f"directions/{name.removeprefix('edits/')}.json").direction
        towards = f" (towards {direction.classes[1]})" if direction.classes else ""
        metric = "AUROC" if direction.kind == "binary" else "R2"
        parts.append(Markup("<h3>{}{}</h3><p>{}</p>").format(
            direction.target, towards,
            f"Cross-validated {metric} of the direction: {number(direction.score)}, fitted to {direction.num_cases} "
            f"training cases. {_judged(study.result(name))}",
        ))  # fmt: skip
        picture = study.folder / name / "edits.png"
        parts.append(media.picture(picture, f"Cases edited along {direction.target}, with their differences"))
        parts.append(Markup('<div class="charts">{}</div>').format(_chart(study, name, direction.target)))
    lead = (
        "Held-out scans, moved along the direction of a label in z_sem by whole standard deviations (0: the scan "
        "itself) and decoded with their own x_T. Edited images are synthetic. Below each row: what became darker "
        "(blue) and brighter (red)."
    )
    return Section("edits", "Edits along a label", lead, joined(parts), study.lines(*names))


def _judged(result: object) -> str:
    achieved, monotone = getattr(result, "achieved", None), getattr(result, "monotone", None)
    texts = []
    if achieved is not None:
        texts.append(f"Edited images moved by {achieved:.0%} of the requested strength (median).")
    if monotone is not None:
        texts.append(f"In {monotone:.0%} of the cases the prediction rises with every step.")
    return " ".join(texts)


def _chart(study: Study, name: str, target: str) -> Markup:
    """The model's prediction for each edited image, encoded again."""
    rows = pd.read_csv(study.folder / name / "edits.csv", dtype={"id": str})
    if "prediction" not in rows:
        return Markup()
    series = [
        Series(f"case {i}", each["strength"].tolist(), each["prediction"].tolist())
        for i, (_, each) in enumerate(rows.groupby("id", sort=False), start=1)
    ]
    return line_chart(
        series, Axes("strength (standard deviations)", f"predicted {target}"), "Prediction for the edited images"
    )
