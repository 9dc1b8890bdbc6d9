"""Find the parts of a configuration that run code, or write or send elsewhere, and that no shipped one contains.

MONAI turns a configuration into Python calls: ``_target_`` names what is called, texts that begin with ``$`` are
evaluated or imported, and ``%file.json`` inserts another file. A configuration is known if all of its targets and
expressions are: each expression equals one of a shipped configuration, character by character, and each target is one
of a shipped configuration or of a list of networks and transforms that only compute. Who made the file does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from monai_diffae.bundle.known_code import known_code
from monai_diffae.bundle.private_values import SEPARATOR
from monai_diffae.errors import UnsafeInputError, quoted

Kind = Literal["target", "expression", "import", "file", "argument", "place"]

# Places that are only read.
_READ_FROM = {"dataset_dir", "embeddings", "start_from", "first_stage_bundle", "patient_pattern"}
_OTHER_FILE = re.compile(r"\.(json|ya?ml)", re.IGNORECASE)
_PLACE = re.compile(r"[/\\~]|[A-Za-z][\w+.-]*:[/\\]|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL)
_NETWORK_PLACE = re.compile(r"[/\\]{2}")


@dataclass(frozen=True)
class OwnCode:
    """A part of a configuration that runs code, or writes or sends elsewhere, and that no shipped one contains.

    Attributes:
        id: where it is.
        kind: ``target``, ``expression``, ``import``; ``file``: another configuration file is inserted; ``argument``:
            one that changes how MONAI builds a component, or downloads weights; ``place``: a folder outside of the
            bundle, or an address, to which something could be written or sent.
        text: the value.
    """

    id: str
    kind: Kind
    text: str

    def __str__(self) -> str:
        """One line; characters that a terminal would interpret are escaped."""
        return f"{self.kind} {quoted(self.text)} at {quoted(self.id)}"


def own_code(config: Any, *, places: bool = True) -> list[OwnCode]:
    """All parts of a configuration that run code, or write or send elsewhere, and that no shipped one contains.

    Without ``places``, places outside of the bundle do not count.

    Example:
        >>> own_code({"network_def": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": "@z"}, "z": 1})
        []
        >>> [str(part) for part in own_code({"a": {"_target_": "os.system", "command": "$input()"}})]
        ["target 'os.system' at 'a#_target_'", "expression '$input()' at 'a#command'"]
    """
    try:
        return list(_search(config, "", places))
    except RecursionError as error:
        raise UnsafeInputError("the configuration is nested too deep; get the bundle from its author again") from error


def _search(value: Any, id: str, places: bool) -> Iterator[OwnCode]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _search_item(str(key), item, f"{id}#{key}" if id else str(key), places)
    elif isinstance(value, list | tuple | set):
        for number, item in enumerate(value):
            yield from _search(item, f"{id}#{number}" if id else str(number), places)
    elif isinstance(value, str):
        kind = _kind(value, places)
        if kind is not None:
            yield OwnCode(id, kind, value)


def _search_item(key: str, item: Any, id: str, places: bool) -> Iterator[OwnCode]:
    name = SEPARATOR.split(key)[-1].removeprefix("+")  # MONAI also takes ids as keys
    if name == "_target_":
        if not (isinstance(item, str) and item in known_code().targets):
            yield OwnCode(id, "target", str(item))
    elif name in ("_mode_", "_debug_") or (name == "pretrained" and item not in (None, False)):
        yield OwnCode(id, "argument", str(item))
    elif name in _READ_FROM and isinstance(item, str) and not _NETWORK_PLACE.match(item):
        yield from _search(item, id, False)
    else:
        yield from _search(item, id, places and name != "_meta_")


def _kind(text: str, places: bool) -> Kind | None:
    if text.startswith("$"):
        if known_code().has_expression(text):
            return None
        return "import" if re.match(r"\$\s*(import|from)\b", text) else "expression"
    if text.startswith("%") and _OTHER_FILE.search(text):
        return "file"
    return "place" if places and _PLACE.match(text) else None
