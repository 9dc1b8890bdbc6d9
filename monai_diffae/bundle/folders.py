"""Bundle folders: shipped ones are copied, trained ones are completed, described, copied or published."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from monai_diffae.bundle import layout
from monai_diffae.bundle.code import read_values
from monai_diffae.bundle.config import references
from monai_diffae.bundle.description import recipe_of, write_description
from monai_diffae.bundle.layout import CONFIGS, MODEL, MODELS, TRAIN, model_file, models_folder, shipped
from monai_diffae.bundle.model_file import (
    FIRST_STAGE,
    ModelFile,
    read_description,
    read_model,
    refuse_other_weights,
    write_for_monai,
)
from monai_diffae.data.atomic import TEMPORARY, ProcessLock, remove_abandoned, temporary_path, write_atomic, write_json
from monai_diffae.errors import ConfigError, DiffAEError, MachineError, one_line
from monai_diffae.policies import PathLike

logger = logging.getLogger(__name__)

UNTRAINED = "The bundle has no weights"
NOTE = (
    "> **This page is about earlier weights.** A training has replaced them. Figures, data and training below are "
    "those of the earlier weights: describe the new ones before you share them."
)
TO_BE_SAID = "Say here which"
USES = ("organ", "modality", "training_data", "intended_use", "unintended_use")
"""What a model card says in its section Intended Use, one point each: ``- **Organ**: ...``."""
_MARK = "<!-- The sections Data and Performance are written by each training. -->"
_USE = "## **Intended Use**\n"
_CARD = Path(__file__).with_name("model_card.md.jinja")
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_STATIC = ("LICENSE", "docs", CONFIGS)  # what training does not change
_PATIENCE_S = 10.0  # worker processes of a killed training need a few seconds to end


def shipped_bundle(name: str) -> Path:
    """The folder of a shipped bundle without weights."""
    names = sorted(_shipped_names() - set(names_with_weights()))
    if name not in names:
        raise ConfigError(f"bundle: there is no {name!r}; choose one of: {', '.join(names)}")
    return shipped("bundles") / name


def names_with_weights() -> list[str]:
    """The names of the shipped bundles with weights."""
    return sorted(name for name in _shipped_names() if (shipped("bundles") / name / MODELS / MODEL).is_file())


def _shipped_names() -> set[str]:
    return {folder.name for folder in shipped("bundles").iterdir() if (folder / CONFIGS / TRAIN).is_file()}


def init_bundle(directory: str | Path, bundle: PathLike = "diffae_2d", first_stage: PathLike | None = None) -> Path:
    """Make a new bundle folder: a shipped bundle, or a copy of a trained one, whose training it can continue.

    The file of a model gets the configurations of ``diffae_2d`` or ``diffae_3d`` with the values of its description; a
    bundle that is shipped with weights has such a ``train.json`` of its own. After an error or a kill, ``directory`` is
    as it was.

    Args:
        directory: a new folder.
        bundle: the name of a shipped bundle, the folder of a trained one, or the file of its model.
        first_stage: on whose latents the new ``diffae_3d`` works; see
            :func:`~monai_diffae.bundle.first_stages.add_first_stage`.

    Raises:
        ConfigError: there is no such bundle or first stage, it is not trained, or ``directory`` is not empty or cannot
            be a folder.
        MachineError: the disk is full, or ``directory`` cannot be written.
    """
    target, source = Path(directory), _source(bundle)
    if first_stage is not None and str(bundle) != "diffae_3d":
        raise ConfigError("first_stage: works with bundle diffae_3d only; choose it, or omit the first stage")
    with new_folder(target) as folder:
        fill_folder(folder, source)
        if first_stage is not None:
            from monai_diffae.bundle.first_stages import add_first_stage

            add_first_stage(folder, Path(first_stage))
    return target


def _source(bundle: PathLike) -> Path:
    names = sorted(_shipped_names())
    if str(bundle) in names:
        return shipped("bundles") / bundle
    if not Path(bundle).exists():
        raise ConfigError(f"bundle: there is no {str(bundle)!r}; choose one of: {', '.join(names)}, or a trained one")
    model_file(bundle)
    return Path(bundle)


def fill_folder(folder: Path, source: Path, *, is_built: bool = True) -> None:
    """Fill a new folder with a bundle, or with a model's file, which need not be trusted without ``is_built``."""
    (folder / MODELS).mkdir()
    if (source / CONFIGS / "inference.json").is_file():  # of those shipped with weights, only train.json is stored
        _copy_static(source, folder)
        if source.parent == shipped("bundles"):
            _copy_overlays(source, folder)
        else:
            copy_model(source, folder)
        return
    file = model_file(source)
    model = read_model(file, "autoencoder", "first_stage", is_built=is_built)
    recipe = shipped_bundle(recipe_of(model.description))
    _copy_static(recipe, folder)
    _copy_overlays(recipe, folder)
    _copy_static(source, folder)
    if file.name == MODEL:
        copy_model(source, folder)
    else:  # what is beside it belongs to another model
        shutil.copyfile(file, folder / MODELS / MODEL)
        _write_for_monai(folder, model)
    if not (source / CONFIGS / TRAIN).is_file():
        write_description(model.description, folder)
    if not (source / CONFIGS / layout.METADATA).is_file():
        write_model_card(folder, model.description, is_described=(source / layout.MODEL_CARD).is_file())


def _copy_overlays(recipe: Path, folder: Path) -> None:
    """Copy the shipped overlays that can be used: with the same ``spatial_dims``, and only keys that the recipe has."""
    target, config = folder / CONFIGS / "overlays", json.loads((recipe / CONFIGS / TRAIN).read_text())
    target.mkdir(exist_ok=True)  # it has those of the latent DDIM and of federations already
    for path in shipped("overlays").glob("*.json"):
        overlay = {key.removeprefix("+"): value for key, value in json.loads(path.read_text()).items()}
        names, used = {key.partition("#")[0] for key in overlay}, references(overlay)
        has_same_dims = overlay.get("spatial_dims", config["spatial_dims"]) == config["spatial_dims"]
        if has_same_dims and names <= config.keys() | used and used <= config.keys() | names:
            shutil.copy2(path, target)


def check_new_folder(directory: str | Path) -> None:
    """Check that a folder is empty or not there."""
    target = Path(directory)
    if os.path.lexists(target) and not target.is_dir():
        raise ConfigError(f"{target.name}: is {'a file' if target.exists() else 'a broken link'}; choose a new folder")
    if target.is_dir() and not all(path.name.startswith(TEMPORARY) for path in target.iterdir()):
        raise ConfigError(f"{target.resolve().name}: the folder is not empty; choose a new one")


@contextmanager
def new_folder(target: Path, *, replaces: bool = False) -> Iterator[Path]:
    """An empty hidden folder, which becomes ``target``, new or empty, at the end; after an error it is as before."""
    remove_abandoned(target.parent, target)
    if not replaces:
        check_new_folder(target)
    is_inside = target.is_dir() and not replaces  # it may be the current folder, or that of a mounted disk
    hidden = temporary_path(target if is_inside else target.parent)
    new, old = hidden / "new", hidden / "old"
    try:
        new.mkdir(parents=True)
        yield new
        if replaces:
            target.rename(old)
        # Without ``configs``, which comes last, no training begins: its first weights would be random
        for part in sorted(new.iterdir(), key=lambda path: path.name == CONFIGS) if is_inside else ():
            part.rename(target / part.name)
        if not is_inside:
            new.rename(target)
    except OSError as error:
        reason = error.strerror or "not all files could be copied"  # shutil raises one error for all files
        raise MachineError(f"{target.name}: cannot be written ({reason}); free space or choose another") from error
    finally:
        if old.is_dir() and not target.exists():
            old.rename(target)
        shutil.rmtree(hidden, ignore_errors=True)


def complete_bundle(bundle_root: str | Path, output_dir: str | Path, *, with_model: bool = False) -> None:
    """Complete an output folder to a bundle, also with the model that a latent DDIM or fast decoder belongs to."""
    root, folder = Path(bundle_root), Path(output_dir)
    if root.resolve() == folder.resolve():
        return
    if not (folder / CONFIGS / TRAIN).is_file():
        _copy_static(root, folder)
        copy_model(root, folder, (layout.FIRST_STAGE_MODEL,))
    if with_model:
        check_no_other_model(root, folder)
        copy_model(root, folder, (MODEL, layout.METRICS))


def describe_folder(folder: str | Path) -> None:
    """Let the model card and ``metadata.json`` of a trained bundle say what its model is, at the end of a training."""
    write_model_card(folder, read_description(model_file(folder)))


def check_no_other_model(bundle_root: str | Path, output_dir: str | Path) -> None:
    """Check that an output folder has no other autoencoder, which the files of this one would replace."""
    root, folder = Path(bundle_root), Path(output_dir)
    files = [models_folder(each) / MODEL for each in (root, folder)]
    if all(file.is_file() for file in files) and files[0].read_bytes() != files[1].read_bytes():
        raise ConfigError(f"output_dir: {folder.resolve().name} holds another trained model; choose another output_dir")


def copy_model(source: str | Path, target: Path, names: tuple[str, ...] = layout.MODEL_FILES) -> None:
    """Copy the files of a model into a bundle, each in one atomic step; checkpoints stay behind."""
    models = models_folder(source)

    def copy(file: Path, temporary: Path) -> None:
        shutil.copyfile(file, temporary)
        if file.name == MODEL:  # from the copy, as a training may replace the source meanwhile
            _write_for_monai(target, read_model(temporary, is_built=False))

    for name in names:
        if (models / name).is_file():
            write_atomic(target / MODELS / name, partial(copy, models / name))


def _write_for_monai(folder: Path, model: ModelFile) -> None:
    weights = {key: value for key, value in model.tensors.items() if not key.startswith(FIRST_STAGE)}
    write_for_monai(folder / MODELS / layout.MONAI_MODEL, weights)


def publish(source: PathLike, target: PathLike) -> None:
    """Replace the model of a bundle by that of another bundle.

    A process that loads the target meanwhile gets either the old or the new model, also if this process is killed. The
    calibration of the old model is removed. A latent DDIM and a fast decoder of the target are kept unless the source
    has one; they are refused when they are loaded, because they belong to another autoencoder.

    Args:
        source: a trained bundle, which is only read.
        target: a bundle, trained or not.

    Raises:
        ConfigError: the source is not trained, the target is not a bundle, both are the same folder, or another process
            trains or publishes the target.
        ScanError: the source is damaged.
        MachineError: the disk is full, or the target cannot be written; its model stays as it is.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        raise ConfigError(f"{source.name}: cannot be published to itself; choose another target")
    if not (target / CONFIGS / TRAIN).is_file():
        raise ConfigError(f"{target.name}: is not a bundle (no configs/train.json); make one with monai-diffae init")
    read_model(model_file(source), "autoencoder", "first_stage")  # raises the error of a source that cannot be used
    refuse_other_weights(source)
    models = target / MODELS
    with WriteLock(models):
        copy_model(source, target, (MODEL,))
        for name in (layout.ANOMALY, layout.METRICS, layout.PROVENANCE, layout.CHECKPOINT):  # of the old model
            (models / name).unlink(missing_ok=True)
        copy_model(source, target, tuple(name for name in layout.MODEL_FILES if name != MODEL))
        description = read_model(models / MODEL).description
        write_description(description, target)
        write_model_card(target, description)


class WriteLock(ProcessLock):
    """The right to write a ``models`` folder; taking it removes the temporary files of killed processes."""

    def __init__(self, models: str | Path) -> None:
        busy = "another process trains or publishes this bundle; wait until it has ended, or choose another folder"
        super().__init__(Path(models) / ".lock", f"{Path(models).resolve().parent.name}: {busy}", _PATIENCE_S)

    def acquire(self) -> None:
        """Take the lock."""
        super().acquire()
        models = self.path.parent
        remove_abandoned(models, *(models.parent / name for name in ("", CONFIGS, layout.PICTURES)))


def _copy_static(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in _STATIC:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).is_file():
            shutil.copy2(source / name, target / name)


# -- model card --------------------------------------------------------------------------------------------------------


def write_model_card(folder: PathLike, description: Mapping[str, Any], *, is_described: bool = False) -> None:
    """Let a bundle's card and metadata describe its model; unless ``is_described``, a foreign card gets a note."""
    metadata, card = Path(folder) / CONFIGS / layout.METADATA, Path(folder) / layout.MODEL_CARD
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        new = text
        if not is_described and (UNTRAINED in text or _MARK in text):
            new = _filled(text, description)
        elif not is_described and text and NOTE not in text:
            heading, _, rest = text.partition("\n")
            new = f"{heading}\n\n{NOTE}\n{rest}"
        if new != text:
            write_atomic(card, lambda path: path.write_text(new, encoding="utf-8"))
        content = read_values(metadata)
        described = {**_with_tensors(content, description), "eval_metrics": description.get("figures", {})}
        if content and described != content:
            write_json(metadata, described)
    except (DiffAEError, OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("the model card still describes the earlier weights (%s); change it yourself", one_line(error))


def read_uses(bundle: PathLike) -> dict[str, str | None]:
    """What the card of a bundle, or of a model's file in one, says about each of :data:`USES`; None: nothing."""
    models = models_folder(bundle)
    card = models.parent / layout.MODEL_CARD
    is_there = models.name == MODELS and card.is_file()
    text = card.read_text(encoding="utf-8", errors="replace") if is_there else ""
    uses: dict[str, str | None] = {}
    for name in USES:
        word = name.replace("_", " ").capitalize()
        found = re.search(rf"^- \*\*{word}\*\*:(.*?)(?=\n[-#]|\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
        said = found[1].partition(TO_BE_SAID)[0] if found and NOTE not in text else ""
        uses[name] = "".join(filter(str.isprintable, " ".join(said.split()))) or None
    return uses


def _with_tensors(metadata: dict[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with what the network gets and gives: images, or latents of a first stage."""
    channels = description.get("network_def", {}).get("unet", {}).get("in_channels")
    channels = description.get("in_channels") if channels in (None, "@in_channels") else channels
    new = {"num_channels": channels, "spatial_shape": description.get("image_size")}
    if stage := description.get("first_stage", {}).get("autoencoder"):
        from monai.networks.nets import AutoencoderKL

        default = signature(AutoencoderKL).parameters["channels"].default
        factor = 2 ** (len(stage.get("channels") or stage.get("num_channels") or default) - 1)
        new["spatial_shape"] = [side // factor for side in description["image_size"]]
    else:
        new["value_range"] = description.get("model_range")
    metadata = deepcopy(metadata)
    for side in metadata.get("network_data_format", {}).values():
        for image in side.values():
            image |= {key: value for key, value in new.items() if value is not None}
    return metadata


def _filled(text: str, description: Mapping[str, Any]) -> str:
    """The card of a recipe with what is known of the trained model."""
    from jinja2 import Template

    data, recipe = description.get("data", {}), description.get("recipe", {})
    unknown = {"image_size": [], "figures": {}, "window_hu": "??", "percentiles": "??"}
    values = {
        **unknown,
        **description,
        "placeholder": TO_BE_SAID,
        "counts": ", ".join(f"{data[name]} for {word}" for name, word in _SPLITS.items() if data.get(name)),
        "settings": ", ".join(f"`{key}` {v}" for key, v in recipe.items() if isinstance(v, int | float | str)),
    }
    card = Template(_CARD.read_text(encoding="utf-8"))
    text = re.sub(rf"{UNTRAINED}[^.]*\.", "The weights were trained by the user of this bundle.", text)
    contents = {name: "".join(block(card.new_context(values))) for name, block in card.blocks.items()}
    use = contents.pop("use")  # written once, as the user completes it
    if _USE not in text:
        text = text.replace("## **Data**\n", f"{_USE}{use}\n\n## **Data**\n", 1)
    for name, content in contents.items():
        heading = f"## **{name.title()}**\n"
        pattern = rf"{re.escape(heading)}.*?(?=\n#+ )"
        text = re.sub(pattern, (heading + content + "\n").replace("\\", r"\\"), text, count=1, flags=re.DOTALL)
    return text
