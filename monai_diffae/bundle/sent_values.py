"""The rule for the values of JSON files that are sent to others: numbers and known words.

A text that is no word of this package is removed: the value that the shipped configuration has at this place is sent
instead, or the entry is left out. Only entries that the model needs may hold the author's own words, without spaces and
slashes: names of classes, of their arguments and of image columns. The author is shown what was removed, and which own
words are sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from monai_diffae.bundle.config import model_config
from monai_diffae.bundle.described_model import model_values
from monai_diffae.bundle.known_words import is_known_key, is_known_text
from monai_diffae.bundle.private_values import SEPARATOR

_MODEL = (
    "network_def", "preprocessing", "inferer", "image_keys", "encoder_key", "latent_network_def", "latent_inferer",
)  # fmt: skip
_OWN_WORD = re.compile(r"[A-Za-z_][\w.+-]{0,59}", re.ASCII)
_NOTHING = object()


class SentValues:
    """What is sent of the content of a JSON file.

    Args:
        content: the content.
        shipped: the shipped configuration, whose values take the place of removed ones.
        needed: the keys that describe a model.

    Attributes:
        content: what is sent.
        removed: the ids of what was removed or replaced, such as ``train#dataset#data``.
        own: the texts that are no words of this package, but needed by the model.

    Example:
        >>> sent = SentValues({"lr": 0.1, "mine": 1, "dataset_dir": "scans/doe"}, {"dataset_dir": "???"})
        >>> sent.content, sent.removed
        ({'lr': 0.1, 'dataset_dir': '???'}, ['mine', 'dataset_dir'])
    """

    def __init__(
        self, content: Mapping[str, Any], shipped: Mapping[str, Any] | None = None, needed: Iterable[str] = ()
    ) -> None:
        self.removed: list[str] = []
        self.own: list[str] = []
        self._needed = frozenset(needed)
        cleaned = self._mapping(dict(content), dict(shipped or {}), "")
        self.content: dict[str, Any] = {} if cleaned is _NOTHING else cleaned

    @property
    def lost(self) -> str | None:
        """The id of something that the model needs and that cannot be sent; None: there is nothing of this kind."""
        return next((id for id in self.removed if self._is_needed(id)), None)

    def _clean(self, value: Any, shipped: Any, id: str) -> Any:
        if isinstance(value, dict):
            return self._mapping(value, shipped, id)
        if isinstance(value, list):
            return self._list(value, shipped, id)
        if isinstance(value, str) and not self._may_be_sent(value, id):
            return self._replaced(shipped, id)
        return value

    def _mapping(self, value: dict[str, Any], shipped: Any, id: str) -> Any:
        before = len(self.removed)
        sent: dict[str, Any] = {}
        for key, item in value.items():
            place = f"{id}#{key}" if id else key
            if not self._is_key_sent(key, place):
                self.removed.append(place)
                continue
            new = self._clean(item, shipped.get(key, _NOTHING) if isinstance(shipped, dict) else _NOTHING, place)
            if new is not _NOTHING:
                sent[key] = new
        if id and ((value and not sent) or ("_target_" in value and "_target_" not in sent)):
            del self.removed[before:]
            return self._replaced(shipped, id)
        return sent

    def _list(self, value: list[Any], shipped: Any, id: str) -> Any:
        before = len(self.removed)
        sent = [self._clean(item, _NOTHING, f"{id}#{i}") for i, item in enumerate(value)]
        if len(self.removed) > before and not all(isinstance(item, dict) and "_target_" in item for item in value):
            del self.removed[before:]
            return self._replaced(shipped, id)
        return [item for item in sent if item is not _NOTHING]

    def _replaced(self, shipped: Any, id: str) -> Any:
        self.removed.append(id)
        return shipped

    def _is_key_sent(self, key: str, id: str) -> bool:
        return is_known_key(key) or self._is_own_word(key, id)

    def _may_be_sent(self, text: str, id: str) -> bool:
        if is_known_text(text, id.rpartition("#")[2]):
            return True
        if text.startswith("@"):
            return all(is_known_key(part) or self._is_own_word(part, id) for part in SEPARATOR.split(text[1:]))
        return self._is_own_word(text, id)

    def _is_own_word(self, text: str, id: str) -> bool:
        if not (self._is_needed(id) and _OWN_WORD.fullmatch(text)):
            return False
        if text not in self.own:
            self.own.append(text)
        return True

    def _is_needed(self, id: str) -> bool:
        return id.partition("#")[0] in self._needed


def sent_configuration(content: Mapping[str, Any], shipped: Iterable[Mapping[str, Any]]) -> SentValues:
    """What is sent of a configuration; the most similar shipped one of its kind replaces what is removed."""

    def num_equal(other: Mapping[str, Any]) -> int:
        return sum(key in other and other[key] == value for key, value in content.items())

    similar = max(shipped, key=num_equal, default={})
    needed = model_values(model_config(dict(content), roots=_MODEL))
    return SentValues(content, cast("Mapping[str, Any]", similar), needed)
