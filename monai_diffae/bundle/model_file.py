"""A model as one plain file: tensors, and the description of the model in the header, in the format safetensors.

The header's metadata has one entry, ``monai_diffae``: a JSON object with the version of this format, the kind of model,
its description, and the SHA-256 of all of the file but itself. A description has ``_target_``, plain values and
``@key``; it has no formulas and no free texts, so it cannot run code, and cannot hold the name of a patient or folder.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from monai_diffae.bundle.code import MODEL_TARGETS, components, is_safe, refuse_code, with_defaults
from monai_diffae.bundle.config import references
from monai_diffae.bundle.layout import MODEL, MODELS, MONAI_MODEL, model_file
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.fingerprints import digest, file_checksum
from monai_diffae.errors import ConfigError, ScanError, UnsafeInputError, quoted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import PathLike

with on_first_use:
    import torch

    from monai_diffae.bundle import parser as parsing
    from monai_diffae.data import tensor_files

VERSION = 1
"""The version of this format; files of a newer one are refused."""

FIRST_STAGE = "first_stage."
"""The beginning of the names of a first stage's tensors in the file of the model on its latents."""

_ENTRY = "monai_diffae"
_KINDS = {
    "autoencoder": "a diffusion autoencoder",
    "first_stage": "a first stage",
    "latent": "a latent DDIM",
    "fast": "a fast decoder",
    "anomaly": "a calibration",
    "wide": "wide features",
}
_DAMAGED = "is damaged or not complete; copy it again, or train again"
_WORD = re.compile(r"[@\w.+*#:()-]{0,100}", re.ASCII)
_NAMES = ("sequences", "encoder_sequences")  # lists of names that datasets choose, such as "T1 pre-contrast"
_KEY = re.compile(r"[A-Za-z]\w{0,59}", re.ASCII)
SECTIONS = ("data", "figures", "recipe", "versions")  # of a description: nothing of them is built
_DEEPEST, _LARGEST, _MOST = 40, 2**53, 20_000
_MARK = b"monai_diffae"  # the comment of the archives that this package writes for MONAI's tools


@dataclass(frozen=True)
class ModelFile:
    """The content of a model's file."""

    name: str  # the name of the file
    kind: str  # ``autoencoder``, ``first_stage``, ``latent``, ``fast`` or ``anomaly``
    description: dict[str, Any]  # what the model is: the configuration of its parts, and the values that they refer to
    tensors: dict[str, torch.Tensor]  # by their names
    sha256: str  # SHA-256 of the whole file

    def load_into(self, network: torch.nn.Module, prefix: str = "") -> None:
        """Load the tensors of a part into a network that was just built: of the model, or of its first stage."""
        other = FIRST_STAGE if "first_stage" in self.description and not prefix else None
        names = [key for key in self.tensors if key.startswith(prefix) and not (other and key.startswith(other))]
        state = {key.removeprefix(prefix): self.tensors[key] for key in names}
        # buffers that are NaN in the new network may be so in the file
        measured_later = {name for name, buffer in network.named_buffers() if buffer.isnan().any()}
        for name, value in state.items():
            if value.is_floating_point() and name not in measured_later and not value.isfinite().all():
                raise ScanError(f"{self.name}: holds weights that are not finite; copy it again, or train again")
        check_fit(state, network, self.name)
        network.load_state_dict(state)


def check_fit(state: Mapping[str, torch.Tensor], network: torch.nn.Module, name: str) -> None:
    """Check that weights, which the file ``name`` holds, are those of a network."""
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    keys = shapes.keys() | state.keys()
    misfits = [key for key in keys if key not in state or key not in shapes or state[key].shape != shapes[key]]
    if misfits:
        raise ConfigError(
            f"{name}: {len(misfits)} of {len(keys)} weights do not fit the network of the configuration, the first is "
            f"{quoted(min(misfits))}; use the configuration with which the model was trained"
        )


def write_model(path: Path, kind: str, tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> Path:
    """Write a model's file, in one atomic step; the same model gives the same bytes."""
    from safetensors.torch import save

    check_writable(description)
    # a copy of each tensor, as safetensors takes none that share memory
    content = save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), memoryview(content)[start:]
    entry = {"version": VERSION, "kind": kind, "description": description}
    entry["sha256"] = _digest(entry, header, data)
    head = json.dumps({"__metadata__": {_ENTRY: json.dumps(entry)}, **header}).encode()
    head += b" " * (-len(head) % 8)
    return write_atomic(path, partial(tensor_files.save_bytes, [len(head).to_bytes(8, "little"), head, data]))


def check_writable(description: Mapping[str, Any]) -> None:
    """Check that a model's file can hold a description, e.g. before a training."""
    for found in _not_plain(description, ""):
        raise ConfigError(
            f"{found}, which a model file cannot hold; write a number, a single word, or a component with _target_"
        )


def read_model(path: Path, *kinds: str, is_built: bool = True) -> ModelFile:
    """Read and check a model's file of one of these kinds; without ``is_built``, it need not be trusted."""
    from safetensors.torch import load

    content, entry, _ = _read_whole(path)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ScanError(f"{path.name}: {_DAMAGED}") from error
    if kinds and entry["kind"] not in kinds:
        kind, wanted = (_KINDS.get(name, quoted(name)) for name in (entry["kind"], kinds[0]))
        raise ConfigError(f"{path.name}: holds {kind}, not {wanted}; choose another bundle or file")
    _check_plain(entry["description"], path.name)
    if is_built:
        refuse_code([f"the target {quoted(target)}" for target in unknown_targets(entry["description"])], path.name)
    return ModelFile(path.name, entry["kind"], entry["description"], tensors, digest(content))


def _read_whole(path: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """The bytes of a file, which is checked to be complete, our entry in it and the entries of the tensors."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ScanError(f"{path.name}: cannot be read ({error.strerror}); check its permissions") from error
    entry, header, start = _entry(content, path.name)
    try:
        is_whole = _digest(entry, header, content[start:]) == entry.get("sha256")
    except (ValueError, KeyError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ScanError(f"{path.name}: {_DAMAGED}")
    return content, entry, header


def count_weights(path: Path) -> int:
    """The number of weights of a model, without those of the first stage on whose latents it works.

    Raises:
        ScanError: the file is damaged.
    """
    _, entry, header = _read_whole(path)
    is_own = entry["kind"] == "first_stage"
    return sum(math.prod(each["shape"]) for name, each in header.items() if is_own or not name.startswith(FIRST_STAGE))


def checksum(bundle: PathLike) -> str:
    """SHA-256 of the file of a bundle's model.

    Raises:
        ConfigError: the bundle is not trained.
    """
    return file_checksum(model_file(bundle))


def read_description(path: Path) -> dict[str, Any]:
    """The kind of a model and its description, whether its targets are trusted or not; nothing of it is run."""
    with path.open("rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        header = file.read(size) if size <= path.stat().st_size else b""
    entry, _, _ = _entry(start + header, path.name)
    _check_plain(entry["description"], path.name)
    return {"kind": entry["kind"], **entry["description"]}


def unknown_targets(description: Mapping[str, Any]) -> list[str]:
    """What a description builds that is not known to compute only, by the dotted names."""
    targets = set()
    for _, part in components(built_part(description)):
        unsafe = ", ".join(name for name, value in with_defaults(part).items() if not is_safe(name, value))
        targets.add(f"{part['_target_']}{f'({unsafe})' if unsafe else ''}")
    return sorted(targets - MODEL_TARGETS)


def model_parser(description: Mapping[str, Any]) -> parsing.Parser:
    """A parser of what a description builds, to which a recipe does not belong."""
    return parsing.Parser(deepcopy(built_part(description)))


def built_part(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description without its data, figures, recipe and versions, of which nothing is built."""
    return {key: value for key, value in description.items() if key not in SECTIONS}


def _check_plain(description: Mapping[str, Any], name: str) -> None:
    for text in _not_plain(description, ""):
        raise UnsafeInputError(f"{name}: {text}, which a model file never holds; nothing was run. Do not use it")


def is_small(description: Mapping[str, Any], id: str, part: Any) -> bool:
    """Whether a part stays small when every reference is replaced by what it refers to, and none is circular."""
    to_visit = [(id, part)]
    for _ in range(_MOST):
        if not to_visit:
            return True
        id, value = to_visit.pop()
        if isinstance(value, Mapping):
            to_visit += [(f"{id}::{key}" if id else str(key), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            to_visit += [(f"{id}::{number}", item) for number, item in enumerate(value)]
        elif isinstance(value, str) and value.startswith("@"):
            with suppress(LookupError, ValueError, TypeError):  # refused when it is built
                to_visit.append(_target(description, id, value))
    return False


def _target(description: Mapping[str, Any], id: str, reference: str) -> tuple[str, Any]:
    """The id and value that a reference at this id refers to, by the rules of MONAI's parser, which is slow."""
    levels, name = re.fullmatch("@((?:::)*)(.*)", reference.replace("#", "::")).groups()  # type: ignore[union-attr]
    parents, level = id.split("::"), len(levels) // 2
    if level > len(parents):
        raise LookupError(reference)
    keys = (parents[:-level] if level else []) + [name]
    target, value = "::".join(keys), description
    for key in target.split("::") if target else ():
        value = value[int(key)] if isinstance(value, list) else value[key]
    return target, value


def _digest(entry: Mapping[str, Any], header: Mapping[str, Any], data: bytes | memoryview) -> str:
    """SHA-256 of everything in a file but the SHA-256 itself."""
    plain = {key: entry[key] for key in ("version", "kind", "description")}
    return digest(json.dumps([plain, header], sort_keys=True), data)


def _entry(content: bytes, name: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Our entry in a header, the entries of the tensors, and where the tensors begin."""
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:start])
        metadata = header.pop("__metadata__", {})
        entry: Any = json.loads(metadata.get(_ENTRY, "null"))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ScanError(f"{name}: {_DAMAGED}") from error
    if not (isinstance(entry, dict) and isinstance(entry.get("version"), int)):
        raise ConfigError(f"{name}: has no description of a model of this package; choose another file")
    if entry["version"] > VERSION:
        raise ConfigError(f"{name}: was written by a newer version of monai_diffae; update the package")
    is_ours = metadata.keys() == {_ENTRY}  # the checksum does not cover other entries, and push would send them
    if not (is_ours and isinstance(entry.get("kind"), str) and isinstance(entry.get("description"), dict)):
        raise ScanError(f"{name}: {_DAMAGED}")
    return entry, header, start


def _not_plain(value: Any, id: str, depth: int = 0) -> Iterator[str]:
    """Formulas, free texts and objects in a description, each as the beginning of a message."""
    if depth > _DEEPEST:
        yield f"{id[:60]}: is nested too deep"
    elif not _has_its_kind(id, value):
        yield f"{id}: is {quoted(value)}"
    elif isinstance(value, Mapping):
        is_free = id.partition("#")[0] in SECTIONS
        for key, item in value.items():
            if not (key == "_target_" or (_WORD if is_free else _KEY).fullmatch(str(key))):
                yield f"{quoted(f'{id}#{key}' if id else str(key))}: is no name of a value"
            yield from _not_plain(item, f"{id}#{key}" if id else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _not_plain(item, f"{id}#{number}", depth + 1)
    elif isinstance(value, str):
        word = value.replace(" ", "") if id.partition("#")[0] in _NAMES else value
        if not _WORD.fullmatch(word) or references(value) & set(SECTIONS):  # of which nothing may be built
            yield f"{id}: is {quoted(value)}"
    elif isinstance(value, int | float):
        if not (abs(value) <= _LARGEST if isinstance(value, int) else math.isfinite(value)):
            yield f"{id}: is NaN, infinite, or above {_LARGEST}"
    elif value is not None:
        yield f"{id}: is a {type(value).__name__}"
    if not depth and not is_small(value, id, value):
        yield "its references are circular, or refer to too many values"


def _has_its_kind(id: str, value: Any) -> bool:
    """Whether a section has keys, each figure is a number, and the frozen keys are a list of words."""
    if id == "frozen":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if id.startswith("figures#"):
        return isinstance(value, int | float)
    return id not in SECTIONS or isinstance(value, Mapping)


def refuse_other_weights(bundle: Path) -> None:
    """Refuse a bundle's folder in which another program has written the weights for MONAI's tools."""
    path = bundle / MODELS / MONAI_MODEL
    if not (bundle.is_dir() and path.is_file()):
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_MARK)))
        if file.read() != _MARK:
            raise ConfigError(f"{path.name}: another program has written it; remove it to use {MODEL}")


def write_for_monai(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write the weights of a model as MONAI's tools load them: a flat state dict, marked as this package's."""

    def write(temporary: Path) -> None:
        tensor_files.save_tensors({name: tensors[name].detach().cpu().clone() for name in sorted(tensors)}, temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = _MARK

    return write_atomic(path, write)
