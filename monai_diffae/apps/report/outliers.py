"""The section with outliers, each beside its nearest neighbors."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from monai_diffae.apps.report.sections import Section, number, omitted
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.report.thumbnails import Thumbnails
from monai_diffae.apps.web_page import joined

_NUM_OUTLIERS, _NUM_NEIGHBORS, _NUM_SHOWN = 12, 5, 3

CARD = Markup('<figure class="near">{}<figcaption>{}</figcaption></figure>')


def shown_ids(study: Study) -> list[str]:
    """The cases that are shown: outliers, their neighbors, and the neighbors of synthetic images."""
    ids: list[str] = []
    if study.result("neighbors") is not None:
        outliers = outliers_of(study)["id"].tolist()
        neighbors = nearest(study, "neighbors")
        ids += outliers + neighbors.loc[neighbors["id"].isin(outliers), "neighbor"].tolist()
    if study.result("samples_neighbors") is not None:
        ids += nearest(study, "samples_neighbors")["neighbor"].tolist()
    return ids


def outlier_section(study: Study, thumbnails: Thumbnails) -> Section | None:
    """The most unusual cases, each with its nearest neighbors."""
    if "neighbors" not in study.outcomes:
        return None
    content = omitted(study.outcomes["neighbors"])
    if study.result("neighbors") is not None:
        neighbors = nearest(study, "neighbors")
        cards = []
        for row in outliers_of(study).to_dict("records"):
            case_id = str(row["id"])
            text = Markup("<strong>{}</strong> ({})<br/>score {}, p = {}").format(
                case_id, row["split"], number(row["whitened"]), number(row["p_whitened"])
            )
            near = neighbors.loc[neighbors["id"] == case_id, "neighbor"].tolist()
            pictures = [
                thumbnails.picture(case_id),
                *(thumbnails.picture(each, f"neighbor {each}") for each in near[:_NUM_SHOWN]),
            ]
            cards.append(CARD.format(strip(pictures), text))
        content = joined([_shares(study), Markup('<div class="nears">{}</div>').format(joined(cards))])
    lead = (
        f"The {_NUM_OUTLIERS} most unusual held-out cases (all cases if none is held out), each beside its nearest "
        "neighbors of other patients. The score is the distance in whitened z_sem to the nearest training cases; p is "
        "about the share of training cases that are at least as unusual."
    )
    return Section("outliers", "Outliers", lead, content, study.lines("neighbors"))


def _shares(study: Study) -> Markup:
    shares = study.result("neighbors").unusual_shares.get("whitened", {})
    text = ", ".join(f"{share:.1%} of {split}" for split, share in shares.items())
    return Markup("<p>Unusual (p &lt; .05): {}. By chance, 5 % would be.</p>").format(text)


def strip(pictures: Sequence[Markup]) -> Markup:
    """Pictures beside each other, the first one larger."""
    return Markup('<div class="strip">{}</div>').format(joined(pictures, ""))


def outliers_of(study: Study) -> pd.DataFrame:
    """The most unusual held-out cases, or of all cases if none is held out."""
    outliers = pd.read_csv(study.folder / "neighbors" / "outliers.csv", dtype={"id": str})
    held_out = outliers[outliers["split"] != "train"]
    return (held_out if len(held_out) else outliers).sort_values("whitened", ascending=False).head(_NUM_OUTLIERS)


def nearest(study: Study, folder: str) -> pd.DataFrame:
    """The five nearest cases of each case: the rows of a table that ``neighbors`` wrote."""
    rows = pd.read_csv(study.folder / folder / "neighbors.csv", dtype={"id": str, "neighbor": str}, low_memory=False)
    return rows[rows["rank"] <= _NUM_NEIGHBORS]
