"""What the page shows: the answers to its requests, as plain values and bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from monai_diffae.apps.synthesis.combination import Axes, write_combined
from monai_diffae.bundle import TrainedLatent
from monai_diffae.data.embeddings import z_matrix
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError, one_line
from monai_diffae.explorer.atlas import Atlas
from monai_diffae.explorer.pixels import packed
from monai_diffae.explorer.recipes import Caller, Recipe
from monai_diffae.explorer.scores import ImageCodes, scores_of
from monai_diffae.explorer.studio import Studio, shown_arrays
from monai_diffae.explorer.thumbnails import Thumbnails
from monai_diffae.explorer.worker import Check, ModelWorker
from monai_diffae.serving.answers import NotFoundError

Quality = Literal["preview", "full"]

_MOST_SAMPLES = 16


@dataclass(frozen=True)
class Exploration:
    """A trained bundle and its embedded cohort, ready for the page.

    ``studio`` is used in the worker's thread only. ``latent`` is None without a latent DDIM.
    """

    atlas: Atlas
    studio: Studio
    thumbnails: Thumbnails
    caller: Caller
    latent: TrainedLatent | None = None
    worker: ModelWorker = field(default_factory=ModelWorker)
    _outliers: Future[dict[str, Any]] = field(default_factory=Future)

    def __post_init__(self) -> None:
        Thread(target=self._score, name="outliers", daemon=True).start()

    @property
    def axes(self) -> Axes:
        """The directions and components."""
        return self.studio.axes

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
            "image_shape": trained.image_shape,
            "spacing": trained.config.get("spacing_mm"),
            "is_pca": atlas.is_pca,
            "map_stds": atlas.components.stds[:2].tolist(),
            "components": [{"name": str(k), "explained": share} for k, share in enumerate(explained, start=1)],
            "directions": [
                {"name": name, "target": each.target, "kind": each.kind, "classes": each.classes, "score": each.score}
                for name, each in self.axes.directions.items()
            ],
            "has_samples": self.latent is not None,
            "z_channels": trained.z_channels,
            "steps": self.studio.steps,
            "preview_steps": self.studio.preview_steps,
            "z_sem_usage": trained.z_sem_usage,
        }

    def outliers(self) -> dict[str, Any]:
        """The outlier scores of all cases and their p-values, or the ``reason`` why there are none; waits for them."""
        return self._outliers.result()

    def about(self, row: int) -> dict[str, Any]:
        """What is known about a case without decoding anything."""
        self._check(row)
        atlas, z_sem = self.atlas, self._z_sem(row)
        return {
            "row": row,
            "id": atlas.cases[row].id,
            "split": atlas.splits[row],
            "labels": {name: values[row] for name, values in atlas.labels.items()},
            "neighbors": [{"row": each, "distance": distance} for each, distance in atlas.neighbors(row)],
            "components": atlas.positions[row].tolist(),
            "extremes": [{**asdict(each), "to_typical": each.to_typical} for each in atlas.extremes(row)],
            "predictions": {name: float(each.predict(z_sem)[0]) for name, each in self.axes.directions.items()},
        }

    def thumbnail(self, row: int) -> bytes:
        """A small PNG of a case."""
        self._check(row)
        return self.thumbnails.of(row)

    def scan(self, row: int) -> bytes:
        """The scan as the model sees it; read at once, even while the model is busy."""
        self._check(row)
        return packed({"image": self.thumbnails.image(row)})

    def progress(self) -> dict[str, str]:
        """What the model does now, if it takes long: a ``text``, empty if there is nothing to tell."""
        return {"text": self.studio.progress}

    def image(self, recipe: Recipe, quality: Quality, lane: str) -> bytes:
        """The image of a recipe, its difference from the plain reconstruction, and its scores."""
        combination, case, others = self._cases(recipe)
        combination.check_detail(recipe.detail)
        steps = self.studio.preview_steps if quality == "preview" else self.studio.steps

        def decode(check: Check) -> bytes:
            decoded = self.studio.decode(combination, case, others, steps, check)
            z_case = self.studio.open(case).z_sem.cpu().numpy()
            z_image = None if decoded.z_image is None else decoded.z_image.cpu().numpy()
            z_target = decoded.z_target.cpu().numpy()
            codes = ImageCodes(z_case, z_target, z_image, is_preview=quality == "preview")
            scores = scores_of(self.atlas, self.axes, recipe.case, codes)
            arrays = shown_arrays(self.studio.open(case), decoded, recipe.detail)
            return packed(arrays, scores=scores, steps=steps, quality=quality)

        return self._wait(lane, decode)

    def samples(self, count: int, seed: int, lane: str) -> bytes:
        """Images of the latent DDIM, those of ``generate`` with this seed."""
        latent = self._latent(count)

        def decode(check: Check) -> bytes:
            trained = self.studio.session.trained
            z_sem = latent.inferer.sample(latent.network, count, seed=seed, start=0).to(trained.device)
            x_T = image_noise(trained.x_T_shape, seed, list(range(count))).to(trained.device)
            return packed({"images": self.studio.sample(z_sem, x_T, check)})

        return self._wait(lane, decode)

    def calls(self, recipe: Recipe) -> dict[str, str]:
        """The command and the Python call that make the image of a recipe."""
        combination, case, _ = self._cases(recipe)
        combination.check_detail(recipe.detail)
        command, python = self.caller.combine(case.id, combination, recipe.detail)
        return {"command": command, "python": python}

    def sample_calls(self, count: int, seed: int) -> dict[str, str]:
        """The command and the Python call that make samples."""
        self._latent(count)
        command, python = self.caller.generate(count, seed)
        return {"command": command, "python": python}

    def export(self, recipe: Recipe) -> tuple[str, bytes]:
        """The image of a recipe in the space of its scan: file name and content. No other request replaces it."""
        combination, case, others = self._cases(recipe)
        combination.check_detail(recipe.detail)

        def write(check: Check) -> tuple[str, bytes]:
            decoded = self.studio.decode(combination, case, others, self.studio.steps, check)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{case.file_name}{'_own_detail' if recipe.detail == 'own' else ''}_synthetic"
                difference = decoded.difference if recipe.detail == "own" else None
                file = write_combined(path, case, self.studio.open(case), decoded.image, difference)
                return file.name, file.read_bytes()

        return self._wait(None, write)

    def close(self) -> None:
        """End the model's thread."""
        self.worker.close()

    def _wait(self, lane: str | None, run: Callable[[Check], Any]) -> Any:
        return self.worker.submit(lane, run).result()

    def _cases(self, recipe: Recipe) -> tuple[Any, Any, dict[str, Any]]:
        """The combination, the case and the other cases of a recipe."""
        for row in (recipe.case, *recipe.other_rows):
            self._check(row)
        unknown = [name for name in recipe.directions if name not in self.axes.directions]
        unknown += [name for name in recipe.components if name not in self._component_names]
        if unknown:
            raise ConfigError(f"{unknown[0][:60]}: is no direction or component of this page")
        others = {row: self.atlas.cases[row] for row in recipe.other_rows}
        combination = recipe.combination({row: case.id for row, case in others.items()})
        return combination, self.atlas.cases[recipe.case], {case.id: case for case in others.values()}

    @property
    def _component_names(self) -> list[str]:
        return [str(k) for k in range(1, len(self.atlas.components.directions) + 1)]

    def _check(self, row: int) -> None:
        if not 0 <= row < len(self.atlas.cases):
            raise NotFoundError(f"case {row}: the cohort has cases 0 to {len(self.atlas.cases) - 1}")

    def _latent(self, count: int) -> TrainedLatent:
        if self.latent is None:
            raise ConfigError("samples: the bundle has no latent DDIM; train one with monai-diffae train-latent")
        if not 1 <= count <= _MOST_SAMPLES:
            raise ConfigError(f"count: {count} is not from 1 to {_MOST_SAMPLES}")
        return self.latent

    def _z_sem(self, row: int) -> Any:
        return z_matrix(self.atlas.table.iloc[[row]])

    def _score(self) -> None:
        try:
            scores, p = self.atlas.outliers
            self._outliers.set_result({"scores": scores.round(5).tolist(), "p": p.round(6).tolist()})
        except ConfigError as error:  # a small cohort has no five training cases of other patients
            self._outliers.set_result({"reason": one_line(error)})
        except BaseException as error:
            self._outliers.set_exception(error)
