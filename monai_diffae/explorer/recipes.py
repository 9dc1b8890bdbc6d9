"""What is on the screen, as the browser sends it, and the command and the Python call that make the same image."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from monai_diffae.apps.commands import command_line
from monai_diffae.apps.settings import Decoding, Reading, Run, Sampling
from monai_diffae.apps.synthesis.combine import Combination
from monai_diffae.data.fingerprints import json_digest

Strength = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class Recipe(BaseModel):
    """The image on the screen. Cases are rows of the table of embeddings, directions and components are positions."""

    model_config = ConfigDict(extra="forbid")

    case: Annotated[int, Field(ge=0)]
    blend: Annotated[int, Field(ge=0)] | None = None
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    noise_of: Annotated[int, Field(ge=0)] | None = None
    noise_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    directions: Annotated[dict[str, Strength], Field(max_length=100)] = {}
    components: Annotated[dict[Annotated[int, Field(ge=1)], Strength], Field(max_length=100)] = {}
    detail: Literal["model", "own"] = "model"

    @property
    def other_rows(self) -> list[int]:
        """The rows of the other cases."""
        return [row for row in (self.blend, self.noise_of) if row is not None]

    def combination(self, ids: Mapping[int, str]) -> Combination:
        """The codes, for the ids of the rows."""
        blend = None if self.blend is None else ids[self.blend]
        noise_of = None if self.noise_of is None else ids[self.noise_of]
        directions = {name: strength for name, strength in self.directions.items() if strength}
        components = {number: strength for number, strength in self.components.items() if strength}
        return Combination(
            directions=directions, components=components, blend=blend, weight=self.weight, noise_of=noise_of,
            noise_seed=self.noise_seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Caller:
    """Writes calls of ``combine`` and ``generate`` with the files and settings that the page's command got."""

    bundle: Path
    cohort: Path
    embeddings: Path | None  # made first, if there are none
    decoding: Decoding
    reading: Reading
    run: Run

    def combine(self, case: str, combination: Combination, detail: str) -> tuple[str, str]:
        """The line for a shell and the lines of Python that make the image of a combination."""
        components = dict(combination.components)
        arguments = {
            "bundle": str(self.bundle), "cohort": str(self.cohort), "case": case,
            "blend": combination.blend, "weight": None if combination.blend is None else combination.weight,
            "noise_of": combination.noise_of, "noise_seed": combination.noise_seed,
            "directions": dict(combination.directions), "components": components,
            "embeddings": str(self.embeddings) if components else None,
            "detail": None if detail == "model" else detail,
            "columns": dict(self.reading.columns), **self._settings(Decoding),
        }  # fmt: skip
        return _both("combine", {**arguments, "out": f"combined/{json_digest([arguments])[:8]}"})

    def generate(self, count: int, seed: int) -> tuple[str, str]:
        """The same for images of the latent DDIM."""
        arguments = {"bundle": str(self.bundle), "out": f"generated_{seed}", "num_images": count, "seed": seed}
        return _both("generate", {**arguments, **self._settings(Sampling)})

    def _settings(self, kind: type[Sampling]) -> dict[str, Any]:
        """The decoding settings that a command with this kind of them takes, and how it runs."""
        return {
            **{each.name: getattr(self.decoding, each.name) for each in fields(kind)},
            "device": self.run.device, "overrides": dict(self.run.overrides),
        }  # fmt: skip


def _both(name: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    given = {key: value for key, value in arguments.items() if value is not None and value not in ("", {}, [])}
    words = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return command_line(name, given), f"from monai_diffae import {name}\n\n{name}({words})"
