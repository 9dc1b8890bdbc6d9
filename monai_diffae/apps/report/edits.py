"""The section with edits along the directions of labels."""

from __future__ import annotations

from markupsafe import Markup

from monai_diffae.apps.report.edit_frames import EditFrames, make_edit_frames
from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.sections import Section, number, omitted
from monai_diffae.apps.report.sprites import Grid, sprite
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.web_page import joined
from monai_diffae.latents import Direction

_CASE = Markup(
    '<figure class="edited"><figcaption><strong>{}</strong>, {}: {}</figcaption>'
    '<div class="film" tabindex="0" role="group" aria-label="Edited images" style="--columns:{}">'
    '<div class="panels heads">{}</div><div class="panels">{}</div><div class="panels scores">{}</div>'
    '<div class="panels">{}</div></div></figure>'
)


def edit_section(study: Study, media: Media) -> Section | None:
    """Edited cases, and what the model sees in them; None if no label was edited."""
    names = [name for name in study.outcomes if name.startswith(("edits/", "directions/"))]
    if not names:
        return None
    parts = [omitted(study.outcomes[name]) for name in names]
    for name in [each for each in names if each.startswith("edits/") and study.result(each) is not None]:
        direction = study.result(f"directions/{name.removeprefix('edits/')}.json").direction
        towards = f" (towards {direction.classes[1]})" if direction.classes else ""
        parts.append(Markup("<h3>{}{}</h3><p>{}</p>").format(
            direction.target, towards,
            f"Cross-validated {direction.score_text}, fitted to {direction.num_cases} training cases."
            f"{' It may be chance: what changes says nothing about the label.' if direction.may_be_chance else ''} "
            f"{_judged(study.result(name))}",
        ))  # fmt: skip
        frames = make_edit_frames(
            study.folder / name, study.folder / "media" / name, study.file_names, overwrite=study.overwrite
        )
        parts += [_case(study, case_id, direction, frames, media) for case_id in dict.fromkeys(frames.rows["id"])]
    lead = (
        "Held-out scans, moved along the direction of a label in z_sem by whole standard deviations (0: the scan "
        "itself) and decoded with their own x_T. Edited images are synthetic. Below each image: what the model "
        "predicts for it, encoded again, and what became darker (blue) and brighter (red)."
    )
    return Section("edits", "Edits along a label", lead, joined(parts), study.lines(*names))


def _judged(result: object) -> str:
    achieved, monotone = getattr(result, "achieved", None), getattr(result, "monotone", None)
    texts = []
    if achieved is not None:
        texts.append(f"Edited images moved by {achieved:.0%} of the requested strength (median).")
    if monotone is not None:
        texts.append(f"In {monotone:.0%} of the cases the prediction rises with every step, which may be chance.")
    return " ".join(texts)


def _case(study: Study, case_id: str, direction: Direction, frames: EditFrames, media: Media) -> Markup:
    """The images of a case with what the model predicts for each, and their differences below."""
    rows = frames.rows[frames.rows["id"] == case_id].sort_values("strength")
    strengths = rows["strength"].tolist()
    predictions = rows["prediction"].tolist() if "prediction" in rows else [None] * len(rows)
    grid = Grid(len(strengths), len(strengths))

    def cells(kind: str, text: str) -> Markup:
        source = f"url('{media.address(frames.file(case_id, kind))}')"
        return joined([
            sprite(source, grid, f"{case_id}, {text} {strength:+g}", frame=i, aspect=frames.aspect)
            for i, strength in enumerate(strengths)
        ])  # fmt: skip

    names = ["the scan" if strength == 0 else f"{strength:+g} SD" for strength in strengths]
    values = [_predicted(direction, value) for value in predictions]
    heads, scores = (joined([Markup("<span>{}</span>").format(each) for each in row]) for row in (names, values))
    true = study.table.loc[study.table["id"].astype(str) == case_id, direction.target].iloc[0]
    return _CASE.format(
        case_id, direction.target, true, len(strengths), heads, cells("images", "edited by"), scores,
        cells("differences", "difference at"),
    )  # fmt: skip


def _predicted(direction: Direction, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if direction.kind == "binary" else number(value)
