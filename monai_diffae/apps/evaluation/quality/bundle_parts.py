"""Everything that is measured of one bundle: reconstructions, z_sem and synthetic images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.apps.evaluation.evaluate import Conditions
from monai_diffae.apps.evaluation.quality.codes import CodeFigures, EncodedCases
from monai_diffae.apps.evaluation.quality.conditions import Condition, conditions_of
from monai_diffae.apps.evaluation.quality.evaluated_bundle import EvaluatedBundle
from monai_diffae.apps.evaluation.quality.generated import GENERATION, FeatureNetwork, GeneratedImages
from monai_diffae.apps.evaluation.quality.journal import Journal, Row
from monai_diffae.apps.evaluation.quality.reconstructions import Reconstructions
from monai_diffae.apps.evaluation.quality.time_left import TimeLeft
from monai_diffae.apps.session import ReadCases
from monai_diffae.data.cases import safe_id, spread_cases
from monai_diffae.errors import OmittableError
from monai_diffae.metrics import ImageQuality, PerceptualDistance

FAILURES = "evaluation_failures.csv"
_OTHER_FAILURES = {"held_out": "held_out_failures.csv", "train": "training_failures.csv"}

Omit = Callable[[str, str], None]


@dataclass(frozen=True, eq=False)
class BundleParts:
    """The parts of one bundle's evaluation.

    Attributes:
        bundle: the bundle.
        conditions: solvers and numbers of steps.
        reconstructions: measures the reconstructions.
        codes: measures z_sem; None: it is not measured.
        generated: measures synthetic images; None: there are none.
    """

    bundle: EvaluatedBundle
    conditions: list[Condition]
    reconstructions: Reconstructions
    codes: CodeFigures | None
    generated: GeneratedImages | None

    @property
    def evaluations(self) -> int:
        """Network evaluations of single images."""
        count = self.reconstructions.evaluations(self.conditions)
        if self.generated is not None:
            count += self.generated.evaluations(self.conditions)
        return count

    def case_rows(self, journal: Journal, time_left: TimeLeft) -> Iterator[Row]:
        """The reconstructions, one row per case, table and condition."""
        yield from self.reconstructions.rows(self.conditions, journal, time_left)

    def generation_rows(self, journal: Journal, time_left: TimeLeft) -> Iterator[Row]:
        """The rows about synthetic images."""
        if self.generated is not None:
            yield from self.generated.rows(self.conditions, self.bundle.made_from, journal, time_left)

    def z_sem_rows(self) -> Iterator[Row]:
        """The rows about z_sem, with progress bars of their own."""
        if self.codes is not None:
            yield from self.codes.usage_rows(self.bundle.session, self.reconstructions.read)
            yield from self.codes.rows()

    def draw(self, folder: Path) -> None:
        """Draw generated images beside their nearest training cases, as with the most steps."""
        if self.generated is not None:
            name = f"generated_{safe_id(self.bundle.name)}.png"
            most_steps = max(self.conditions, key=lambda condition: condition.steps)
            self.generated.draw_nearest(most_steps, folder / name)


@dataclass(frozen=True)
class PartsOfBundles:
    """Prepares the parts of bundles: reads and encodes their cases.

    Attributes:
        settings: conditions and numbers.
        seed: random seed.
        folder: the folder for failures and preprocessed images.
        lpips: measures LPIPS; None: it is left out.
        networks: features of images by the name of the network.
    """

    settings: Conditions
    seed: int
    folder: Path
    lpips: PerceptualDistance | None
    networks: Mapping[str, FeatureNetwork]

    def of(self, bundle: EvaluatedBundle, omit: Omit) -> BundleParts:
        """The parts of one bundle; ``omit`` is called with a metric and the reason why it cannot be measured."""
        session, trained = bundle.session, bundle.session.trained
        read = session.read(bundle.cases, self.folder, FAILURES)
        quality = ImageQuality(trained.image_shape[1:], trained.model_range, self.lpips)
        for metric, reason in quality.omitted().items():
            omit(metric, reason)
        reconstructions = Reconstructions(bundle.name, session, read, quality, self.settings.draws, self.seed)
        settings = self.settings
        conditions = conditions_of(trained.inferer, settings.solvers, settings.steps, settings.decoders)
        if not self.settings.num_codes and not self.settings.num_images:
            return BundleParts(bundle, conditions, reconstructions, None, None)
        held_out, train = self._read(bundle, "held_out") or read, self._read(bundle, "train")
        encoded = EncodedCases.of(session, held_out), None if train is None else EncodedCases.of(session, train)
        codes = CodeFigures(bundle.name, *encoded, self.seed, omit) if self.settings.num_codes else None
        generated = None
        if self.settings.num_images:
            try:
                generated = GeneratedImages(
                    bundle.name, session, bundle.latent, read, train, encoded, self.networks, self.settings.num_images,
                    self.seed, omit,
                )  # fmt: skip
            except OmittableError as error:
                omit(GENERATION, str(error))
        return BundleParts(bundle, conditions, reconstructions, codes, generated)

    def _read(self, bundle: EvaluatedBundle, split: str) -> ReadCases | None:
        cases = spread_cases(bundle.held_out if split == "held_out" else bundle.train, self.settings.num_codes)
        return bundle.session.read(cases, self.folder, _OTHER_FAILURES[split]) if cases else None
