"""The files of a shared model, and what is checked before they are sent and after they are got."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from monai_diffae.bundle import layout
from monai_diffae.bundle.folders import NOTE, TO_BE_SAID, UNTRAINED
from monai_diffae.bundle.loading import load_bundle, load_fast_decoder, load_first_stage, load_latent
from monai_diffae.bundle.model_file import checksum, read_description, read_model, unknown_targets
from monai_diffae.errors import ConfigError, UnsafeInputError

MODEL, LATENT, FAST, METRICS = (
    f"{layout.MODELS}/{name}" for name in (layout.MODEL, layout.LATENT_MODEL, layout.FAST_MODEL, layout.METRICS)
)
CARD, DATA_LICENSE = layout.MODEL_CARD, layout.DATA_LICENSE
DOCUMENTS = (CARD, DATA_LICENSE, "LICENSE")
SENT = (MODEL, LATENT, FAST, METRICS, *DOCUMENTS)
"""The names of all files that are sent and got."""

_LONGEST_DOCUMENT = 200_000  # bytes
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")  # commands to a terminal, and what is no UTF-8
_NO_WEIGHTS = "no trained weights"  # in the data licence of a recipe


def files_to_send(bundle: Path) -> dict[str, bytes]:
    """The files of a bundle that others get, by their names, after all checks.

    Raises:
        ConfigError: the bundle is not trained, its models do not belong together, or its documents say nothing of them.
        ScanError: a model is damaged.
    """
    description = read_description(layout.model_file(bundle))
    files = {name: (bundle / name).read_bytes() for name in SENT if (bundle / name).is_file()}
    files[METRICS] = f"{json.dumps(description.get('figures', {}), indent=2)}\n".encode()
    texts = {name: " ".join(read_document(bundle, name).split()) for name in DOCUMENTS if name in files}
    card, licence = texts.get(CARD, UNTRAINED), texts.get(DATA_LICENSE, _NO_WEIGHTS)
    for is_found, text in (
        (UNTRAINED in card, f"{CARD}: says nothing about the trained weights; describe their data, quality and limits"),
        (NOTE in card, f"{CARD}: is about earlier weights; describe the new ones, and remove the note at its top"),
        (TO_BE_SAID in card, f"{CARD}: replace '{TO_BE_SAID} ...' by the organ, modality, hospital and patients"),
        (_NO_WEIGHTS in licence, f"{DATA_LICENSE}: is about no weights; write whose the scans are, and their licence"),
    ):
        if is_found:
            raise ConfigError(text)
    if description["kind"] == "first_stage":
        load_first_stage(bundle)
    else:
        trained = load_bundle(bundle, "cpu")
        if FAST in files:
            load_fast_decoder(layout.models_folder(bundle), trained.network, trained.sha256, "cpu")
    if LATENT in files:
        load_latent(bundle, "cpu")
    if checksum(bundle) != hashlib.sha256(files[MODEL]).hexdigest():
        raise ConfigError(f"{bundle.name}: was trained meanwhile; wait until the training has ended")
    return files


def unknown_code(folder: Path) -> list[str]:
    """Check that the models in a folder belong together, and list what they build that may do more than compute."""
    model = read_model(folder / MODEL, "autoencoder", "first_stage", is_built=False)
    targets = set(unknown_targets(model.description))
    for name, kind in ((LATENT, "latent"), (FAST, "fast")):
        if (folder / name).is_file():
            other = read_model(folder / name, kind, is_built=False)
            if other.description.get("autoencoder_sha256") != model.sha256:
                raise ConfigError(f"{name}: belongs to another model than {MODEL}; ask its author for the right one")
            targets.update(unknown_targets(other.description))
    return sorted(targets)


def read_document(folder: Path, name: str) -> str:
    """The text of a document, which is short, and holds no commands to a terminal."""
    is_short = (folder / name).stat().st_size <= _LONGEST_DOCUMENT
    text = (folder / name).read_bytes().decode(errors="replace") if is_short else ""
    if not is_short or _NO_TEXT.search(text):
        most = f"{_LONGEST_DOCUMENT // 1000} kB"
        raise UnsafeInputError(f"{name}: is no text in UTF-8 of at most {most}; replace it by one")
    return text
