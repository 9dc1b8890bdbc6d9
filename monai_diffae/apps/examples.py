"""Choose what pages show: labels that a probe can learn, and cases that show both ends of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd
from pandas.api.types import is_numeric_dtype

from monai_diffae.data.embeddings import label_columns

_MOST_TARGETS = 5
_MOST_CLASSES = 10
_FEWEST_PER_CLASS = 5
_USUAL = (
    "normal",
    "healthy",
    "control",
    "controls",
    "hc",
    "negative",
    "none",
    "no finding",
)  # not the class to look at


def find_targets(table: pd.DataFrame, targets: Sequence[str] = ()) -> list[str]:
    """The label columns of a table of embeddings that can be predicted, in the order of the table, at most five.

    A column is used if it has numbers, or up to 10 classes with at least five cases each. Columns with one value, and
    text that differs from case to case (such as names), are not used.
    """
    if targets:
        return list(targets)
    return [name for name in label_columns(table) if _can_be_predicted(table[name].dropna())][:_MOST_TARGETS]


def _can_be_predicted(values: pd.Series) -> bool:
    counts = Counter(values)
    if len(counts) < 2:
        return False
    if len(counts) > _MOST_CLASSES:
        return is_numeric_dtype(values)
    return min(counts.values()) >= _FEWEST_PER_CLASS


def find_positive(table: pd.DataFrame, target: str) -> str | None:
    """The class of a label to compare with the rest: the rarest that is not called normal or the like.

    None if the label is a number, or its two classes are equals, such as F and M.

    Example:
        >>> find_positive(pd.DataFrame({"finding": ["normal", "benign", "benign", "malignant"]}), "finding")
        'malignant'
    """
    values = table[target].dropna()
    counts = Counter(map(str, values))
    unusual = [name for name in counts if name.lower() not in _USUAL]
    if is_numeric_dtype(values) or len(counts) < 2 or (len(counts) == 2 and len(unusual) != 1):
        return None
    return min(unusual or counts, key=lambda name: (counts[name], name))


def held_out_split(table: pd.DataFrame) -> str | None:
    """The split of the held-out cases of a table of embeddings: ``test``, else ``val``; None: it has neither."""
    splits = set(table["split"]) if "split" in table else set()
    return next((name for name in ("test", "val") if name in splits), None)


def find_examples(table: pd.DataFrame, target: str, number: int) -> list[str]:
    """Ids of held-out cases from both ends of a label, alternating: the first, the last, the second, ...

    The class of :func:`find_positive` is one end, all others the other; other labels are sorted as they are.

    Example:
        >>> table = pd.DataFrame({"id": list("abcd"), "split": "test", "sick": [1, 0, 0, 1]})
        >>> find_examples(table, "sick", 2)
        ['b', 'd']
    """
    labelled = table[table[target].notna()]
    split = held_out_split(labelled)
    if split is not None:
        labelled = labelled[labelled["split"] == split]
    positive = find_positive(table, target)
    ends = labelled[target] if positive is None else labelled[target].astype(str) == positive
    ids = labelled.loc[ends.sort_values(kind="stable").index, "id"].astype(str).tolist()
    from_both_ends = [ids[i // 2] if i % 2 == 0 else ids[-1 - i // 2] for i in range(len(ids))]
    return from_both_ends[:number]
