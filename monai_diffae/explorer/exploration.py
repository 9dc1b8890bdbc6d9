"""What the page shows: opens the bundle and the cohort, and answers requests with plain values and bytes.

A :class:`Recipe` is the image on the screen; :class:`Caller` writes the calls that make the same image.
"""

import json
import logging
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from threading import BoundedSemaphore
from typing import Annotated, Any, Literal

import numpy as np
import torch
from fastapi import Query
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from monai_diffae.apps.commands import command_line
from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Decoding, Reading, Run, Sampling
from monai_diffae.apps.synthesis.decode import Axes, Combination, write_combined
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.apps.table_origin import check_same_model, warn_of_other_preprocessing
from monai_diffae.bundle import TrainedLatent, load_latent
from monai_diffae.bundle.layout import LATENT_MODEL, models_folder
from monai_diffae.data.cases import Case
from monai_diffae.data.embeddings import knows_patients
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.data.streamed import preprocessed
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError, counted, one_line
from monai_diffae.explorer.atlas import Atlas, scores_of
from monai_diffae.explorer.studio import Check, ModelWorker, Studio, shown_arrays
from monai_diffae.latents.representation import warn_if_unused
from monai_diffae.pictures import thumbnail
from monai_diffae.serving.answers import NotFoundError

logger = logging.getLogger(__name__)

Quality = Literal["preview", "full"]
Window = Annotated[str, Query(pattern=r"^\w{1,40}$")]
"""A name that a browser window chooses for itself: newer requests of a window replace older ones."""
Count = Annotated[int, Query(ge=1, le=16)]
Seed = Annotated[int, Query(ge=0, lt=2**32)]
Strength = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]

_READ_AT_ONCE = BoundedSemaphore(2)


class Recipe(BaseModel):
    """The image on the screen. Cases are rows of the table of embeddings."""

    model_config = ConfigDict(extra="forbid")

    case: Annotated[int, Field(ge=0)]
    blend: Annotated[int, Field(ge=0)] | None = None
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    noise_of: Annotated[int, Field(ge=0)] | None = None
    noise_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    moves: Annotated[dict[str, Strength], Field(max_length=100)] = {}
    detail: Literal["model", "own"] = "model"

    @property
    def other_rows(self) -> list[int]:
        """The rows of the other cases."""
        return [row for row in (self.blend, self.noise_of) if row is not None]

    def combination(self, ids: Mapping[int, str]) -> Combination:
        """The codes, for the ids of the rows."""
        others = {name: ids[row] for name in ("blend", "noise_of") if (row := getattr(self, name)) is not None}
        moves = {name: strength for name, strength in self.moves.items() if strength}
        return Combination(**{**self.model_dump(exclude={"case"}), **others, "moves": moves})


@dataclass(frozen=True)
class Caller:
    """Writes calls of ``decode`` and ``generate`` with the files and settings that the page's command got."""

    bundle: Path
    cohort: Path
    embeddings: Path | None  # made first, if there are none
    decoding: Decoding
    reading: Reading
    run: Run

    def decode(self, case: str, combination: Combination) -> dict[str, str]:
        """The line for a shell and the lines of Python that make the image of a combination."""
        arguments = {
            "bundle": str(self.bundle),
            "cohort": str(self.cohort),
            "case": case,
            **{name: value for name, value in vars(combination).items() if value != getattr(Combination(), name)},
            "embeddings": str(self.embeddings) if any(map(str.isdigit, combination.moves)) else None,
            "columns": dict(self.reading.columns),
            **self._settings(Decoding),
        }
        return _both("decode", {**arguments, "out": f"decoded/{json_digest([arguments])[:8]}"})

    def generate(self, count: int, seed: int) -> dict[str, str]:
        """The same for images of the latent DDIM."""
        arguments = {"bundle": str(self.bundle), "out": f"generated_{seed}", "num_images": count, "seed": seed}
        return _both("generate", {**arguments, **self._settings(Sampling)})

    def _settings(self, kind: type[Sampling]) -> dict[str, Any]:
        """The decoding settings that a command with this kind of them takes, and how it runs."""
        return {
            **{each.name: getattr(self.decoding, each.name) for each in fields(kind)},
            "device": self.run.device,
            "overrides": dict(self.run.overrides),
        }


def _both(name: str, arguments: Mapping[str, Any]) -> dict[str, str]:
    given = {key: value for key, value in arguments.items() if value is not None and value not in ("", {}, [])}
    words = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return {"command": command_line(name, given), "python": f"from monai_diffae import {name}\n\n{name}({words})"}


def open_exploration(caller: Caller, out: Path, directions: Sequence[Path], num_components: int) -> "Exploration":
    """Open everything, and embed the cohort in ``out`` if there is no table."""
    reading, run = caller.reading, caller.run
    session = Session.open(caller.bundle, caller.cohort, decoding=caller.decoding, reading=reading, run=run)
    trained = session.trained
    lines = {str(file): read_direction(file, trained) for file in directions}
    warn_if_unused(trained.z_sem_usage)
    embeddings = caller.embeddings
    if embeddings is None:
        paths = {"bundle": caller.bundle, "cohort": caller.cohort, "out": out}
        logger.info("$ %s", command_line("embed", paths))
        embeddings = Path(embed(**paths, reading=reading, run=run))
    check_same_model(embeddings, caller.bundle)
    warn_of_other_preprocessing(embeddings, trained)
    atlas = Atlas.open(embeddings, session.cohort.cases, num_components)
    num_missing = len(session.cohort.cases) - len(atlas.cases)
    if num_missing:
        text = "%s of the cohort not in %s, and not on the map"
        logger.warning(text, counted(num_missing, "case"), embeddings.name)
    studio = Studio(session, Axes(lines, atlas.components))
    seconds = studio.warm_up()
    logger.info("one network evaluation takes %.0f ms: previews take %d", 1000 * seconds, studio.preview_steps)
    has_latent = (models_folder(trained.folder) / LATENT_MODEL).is_file()
    latent = load_latent(trained.folder, trained.device) if has_latent else None
    return Exploration(atlas, studio, replace(caller, embeddings=embeddings), latent)


@dataclass(frozen=True)
class Exploration:
    """A trained bundle and its embedded cohort, ready for the page."""

    atlas: Atlas
    studio: Studio
    caller: Caller
    latent: TrainedLatent | None = None
    worker: ModelWorker = field(default_factory=ModelWorker)
    _thumbnails: dict[int, bytes] = field(default_factory=dict)

    def overview(self) -> dict[str, Any]:
        """Everything about the cohort that the page needs at first."""
        trained, atlas = self.studio.session.trained, self.atlas
        explained = atlas.components.explained[: atlas.num_components].tolist()
        return {
            "bundle": trained.folder.resolve().name,
            "cohort": self.caller.cohort.resolve().name,
            "ids": [case.id for case in atlas.cases],
            "x": atlas.coordinates[:, 0].round(4).tolist(),
            "y": atlas.coordinates[:, 1].round(4).tolist(),
            "splits": atlas.splits,
            "labels": atlas.labels,
            "model_range": trained.model_range,
            "is_colour": trained.is_colour,
            "image_shape": trained.image_shape,
            "spacing": trained.config.get("spacing_mm"),
            "is_pca": atlas.is_pca,
            "map_stds": atlas.components.stds[:2].tolist(),
            "components": [{"name": str(k), "explained": share} for k, share in enumerate(explained, start=1)],
            "directions": [
                {"name": name, "target": each.target, "kind": each.kind, "classes": each.classes}
                for name, each in self.studio.axes.directions.items()
            ],
            "has_samples": self.latent is not None,
            "z_channels": trained.z_channels,
            "knows_patients": knows_patients(atlas.table),
        }

    def outliers(self) -> dict[str, Any]:
        """The outlier scores of all cases and their p-values, or the ``reason`` why there are none."""
        try:
            scores, p = self.atlas.outliers
        except ConfigError as error:  # a small cohort has no five training cases of other patients
            return {"reason": one_line(error)}
        return {"scores": scores.round(5).tolist(), "p": p.round(6).tolist()}

    def describe(self, row: int) -> dict[str, Any]:
        """What is known about a case without decoding anything."""
        self._check(row)
        atlas = self.atlas
        return {
            "row": row,
            "split": atlas.splits[row],
            "labels": {name: values[row] for name, values in atlas.labels.items()},
            "neighbors": [{"row": each, "distance": distance} for each, distance in atlas.neighbors(row)],
            "components": atlas.positions[row].tolist(),
            "extremes": [{**asdict(each), "to_typical": each.to_typical} for each in atlas.extremes(row)],
        }

    def thumbnail(self, row: int) -> bytes:
        """A small PNG of a case: from the table if it has them, else made once."""
        self._check(row)
        table = self.atlas.table
        if "thumbnail" in table and isinstance(table["thumbnail"][row], bytes):
            return bytes(table["thumbnail"][row])
        if row not in self._thumbnails:
            picture = self.studio.session.trained.shown(torch.from_numpy(self._image(row))[None])
            self._thumbnails[row] = thumbnail(picture)
        return self._thumbnails[row]

    def scan(self, row: int) -> bytes:
        """The scan as the model sees it; read at once, even while the model is busy."""
        self._check(row)
        return packed({"image": self._image(row)})

    def _image(self, row: int) -> NDArray[np.float32]:
        """The scan of a case as the model sees it, [C, *S]."""
        with _READ_AT_ONCE:
            preprocessing = self.studio.session.trained.preprocessing
            item = preprocessed(preprocessing, self.atlas.cases[row].item(), ("image",))
        return np.asarray(item["image"], np.float32)

    def progress(self) -> dict[str, str]:
        """What the model does now, if it takes long: a ``text``, empty if there is nothing to tell."""
        return {"text": self.studio.progress}

    def image(self, recipe: Recipe, window: Window, quality: Quality = "full") -> bytes:
        """The image of a recipe, its difference from the plain reconstruction, and its scores."""
        combination, case, others = self._cases(recipe)
        steps = self.studio.preview_steps if quality == "preview" else self.studio.steps

        def decode(check: Check) -> bytes:
            decoded = self.studio.decode(combination, case, others, steps, check)
            codes = {name: z_sem.cpu().numpy() for name, z_sem in decoded.codes.items()}
            scores = scores_of(self.atlas, self.studio.axes, recipe.case, codes, is_preview=quality == "preview")
            arrays = shown_arrays(self.studio.open(case), decoded, recipe.detail)
            return packed(arrays, scores=scores, steps=steps, quality=quality)

        return self.worker.submit(f"{window}:image", decode).result()

    def samples(self, count: Count, seed: Seed, window: Window) -> bytes:
        """Images of the latent DDIM, those of ``generate`` with this seed."""
        if self.latent is None:
            raise ConfigError("samples: the bundle has no latent DDIM; train one with monai-diffae train-latent")
        latent = self.latent

        def decode(check: Check) -> bytes:
            trained = self.studio.session.trained
            z_sem = latent.inferer.sample(latent.network, count, seed=seed, start=0).to(trained.device)
            x_T = image_noise(trained.x_T_shape, seed, list(range(count))).to(trained.device)
            return packed({"images": self.studio.sample(z_sem, x_T, check)})

        return self.worker.submit(f"{window}:samples", decode).result()

    def calls(self, recipe: Recipe) -> dict[str, str]:
        """The command and the Python call that make the image of a recipe."""
        combination, case, _ = self._cases(recipe)
        return self.caller.decode(case.id, combination)

    def sample_calls(self, count: Count, seed: Seed) -> dict[str, str]:
        """The command and the Python call that make samples."""
        return self.caller.generate(count, seed)

    def export(self, recipe: Recipe) -> tuple[str, bytes]:
        """The image of a recipe in the space of its scan: file name and content. No other request replaces it."""
        combination, case, others = self._cases(recipe)

        def write(check: Check) -> tuple[str, bytes]:
            decoded = self.studio.decode(combination, case, others, self.studio.steps, check)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{case.file_name}{'_own_detail' if recipe.detail == 'own' else ''}_synthetic"
                difference = decoded.difference if recipe.detail == "own" else None
                file = write_combined(path, self.studio.open(case), decoded.image, difference)
                return file.name, file.read_bytes()

        return self.worker.submit(None, write).result()

    def close(self) -> None:
        """End the model's thread."""
        self.worker.close()

    def _cases(self, recipe: Recipe) -> tuple[Combination, Case, dict[str, Case]]:
        """The combination, the case and the other cases of a recipe."""
        for row in (recipe.case, *recipe.other_rows):
            self._check(row)
        numbers = map(str, range(1, len(self.atlas.components.directions) + 1))
        if unknown := sorted(recipe.moves.keys() - {*self.studio.axes.directions, *numbers}):
            raise ConfigError(f"{unknown[0][:60]}: is no direction or component of this page")
        others = {row: self.atlas.cases[row] for row in recipe.other_rows}
        combination = recipe.combination({row: case.id for row, case in others.items()})
        combination.check_detail()
        return combination, self.atlas.cases[recipe.case], {case.id: case for case in others.values()}

    def _check(self, row: int) -> None:
        if not 0 <= row < len(self.atlas.cases):
            raise NotFoundError(f"case {row}: the cohort has cases 0 to {len(self.atlas.cases) - 1}")


def packed(arrays: Mapping[str, Tensor | NDArray[Any]], **header: Any) -> bytes:
    """Arrays and other values as bytes: the header's length (uint32, little endian), the header, the arrays."""
    on_cpu = {name: array.detach().cpu() if isinstance(array, Tensor) else array for name, array in arrays.items()}
    values = {name: np.ascontiguousarray(array, "<f4") for name, array in on_cpu.items()}
    places, offset = {}, 0
    for name, array in values.items():
        places[name] = {"shape": list(array.shape), "offset": offset}
        offset += array.nbytes
    text = json.dumps({**header, "arrays": places}, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)  # the browser needs arrays at multiples of 4
    return b"".join([struct.pack("<I", len(text)), text, *(array.tobytes() for array in values.values())])
