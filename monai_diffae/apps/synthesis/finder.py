"""Finds the counterfactual of a case: the shortest change of z_sem that moves the score of a user's model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae import bundle as bundles
from monai_diffae import inferers, latents
from monai_diffae.apps.settings import Columns, NamedFiles, Seed
from monai_diffae.apps.synthesis import edit, shortcuts
from monai_diffae.apps.synthesis.users_model import ScoredCase, UsersModel
from monai_diffae.bundle.layout import FAST_MODEL, models_folder
from monai_diffae.data.cases import Case, PatientKey
from monai_diffae.data.progress import track
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError, ScanError, counted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Detail

with on_first_use:
    import numpy as np
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.bundle import loading
    from monai_diffae.data import embeddings as tables
    from monai_diffae.inferers import counterfactual

if TYPE_CHECKING:
    from monai_diffae.latents.statistics import Codes as Floats

logger = logging.getLogger(__name__)

_NUM_COMPONENTS = 16  # of the search by finite differences
_LEAST, _MOST = 0.8, 0.99  # probability of the other class that a counterfactual should have
_SEARCH_STEPS = 5  # of a decoding in the search, without a fast decoder
_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the change, at which the exact decoder is asked
_NUM_NEIGHBORS = 5
_MOST_CLASSES = 5  # of a label that is balanced
_MOST_UNSEEN = 0.2  # share of decisions that may change if the model gets only what the bundle sees


@Parameter(name="*", group=Group("Search", sort_key=2))
@dataclass(frozen=True)
class Search:
    """What is searched for, and how."""

    to: float | None = None
    """Score that a counterfactual should have; by default the other side of .5, as far away as the scan's score, but at
    least .8 (or .2) and at most .99 (or .01)."""
    labels: Sequence[str] = ()
    """Label columns of the embeddings that may change; by default all with two classes, and numbers."""
    positive: Columns = field(default_factory=dict)
    """The class, against all others, of labels with several classes, e.g. ``subtype=virus``."""
    paste: NamedFiles = field(default_factory=dict)
    """Images of markers, by label or another name, e.g. ``marker=marker.png``: nonzero values are pasted at the same
    place of each scan; a mask of 0 and 1 pastes the scan's highest value."""
    allow_unseen: bool = False
    """Continue even if many decisions depend on detail that the bundle cannot see."""
    num_random: Annotated[int, Ge(1)] = 4
    """Random changes of the same length per case, with which the counterfactual is compared."""
    seed: Seed = 0
    """Random seed of these changes and of the bootstrap."""


def strata(cases: Sequence[Case], decisions: Sequence[bool]) -> list[list[Hashable]]:
    """What is balanced for each case: its decision, the classes of its labels, and both together."""
    values = {name: [case.labels.get(name) for case in cases] for name in (cases[0].labels if cases else ())}
    few = {name: labels for name, labels in values.items() if len(set(labels)) <= _MOST_CLASSES}
    return [
        [decision, *((name, labels[row], each) for name, labels in few.items() for each in (None, decision))]
        for row, decision in enumerate(decisions)
    ]


def balanced_rows(strata: Sequence[Sequence[Hashable]], limit: int, seed: int) -> list[int]:
    """At most ``limit`` random rows, with equally many of each stratum as far as possible."""
    left, rows, counts = list(np.random.default_rng(seed).permutation(len(strata))), list[int](), Counter[Hashable]()
    while left and len(rows) < limit:
        row = min(left, key=lambda row: sum(counts[each] for each in strata[row]))
        left.remove(row)
        counts.update(strata[row])
        rows.append(int(row))
    return sorted(rows)


def search_inferer(trained: bundles.TrainedBundle) -> tuple[inferers.DiffusionAutoencoderInferer, str | None]:
    """The inferer of the search, by the fast decoder or with few steps, and the SHA-256 of the former."""
    models = models_folder(trained.folder)
    if not (models / FAST_MODEL).is_file():
        return trained.inferer.replace(steps=min(_SEARCH_STEPS, trained.inferer.steps)), None
    fast, sha256 = loading.load_fast_decoder(models, trained.network, trained.sha256, trained.device)
    return trained.inferer.replace(fast_decoder=fast, decoder="fast"), sha256


@dataclass(frozen=True)
class Reference:
    """The table of embeddings: the training cases define distances, components and the directions of labels."""

    table: pd.DataFrame
    key: PatientKey  # of the patients' hashes

    @cached_property
    def training(self) -> pd.DataFrame:
        """The rows of the training cases; all rows if the table has no splits."""
        return tables.training_rows(self.table)

    @cached_property
    def components(self) -> latents.PrincipalComponents:
        """The principal components of the training cases, along which a change is searched."""
        return latents.principal_components(tables.z_matrix(self.training))

    @cached_property
    def nearest_other(self) -> Callable[[Floats, str], Floats]:
        """A function from normalised z_sem (A, D) and a patient to the distances (A,) to the nearest other patient."""
        return edit.nearest_other_patient(self.table, self.key, self.components.statistics)

    def directions(self, search: Search, model: str) -> tuple[list[latents.Direction], dict[str, str]]:
        """The directions of labels, fitted to the training cases, and why others have none."""
        from monai_diffae.latents.targets import reason_against

        z_train, patients = tables.z_matrix(self.training), self.training["patient"].tolist()
        directions, omitted = [], {}
        for name in search.labels or tables.label_columns(self.table):
            values = self.training[name].tolist()
            try:
                if name not in {*search.labels, *search.positive} and (reason := reason_against(values, name)):
                    raise ConfigError(reason)
                fitted = latents.fit_direction(
                    z_train,
                    values,
                    target=name,
                    model=model,
                    groups=patients,
                    seed=search.seed,
                    positive=search.positive.get(name),
                )
                if fitted.may_be_chance:
                    raise ConfigError(f"label '{name}': z_sem may not predict it ({fitted.score_text}), so omit it")
                directions.append(fitted)
            except ConfigError as error:
                if name in {*search.labels, *search.positive}:
                    raise
                omitted[name] = str(error)
        return directions, omitted

    def outlier_p(self, z_sem: Floats, patients: Sequence[str]) -> Floats:
        """The p-values (N,) of z_sem (N, D) among the training cases."""
        reference = self.training["patient"].tolist()
        return latents.outlier_scores(
            z_sem,
            tables.z_matrix(self.training),
            k=min(_NUM_NEIGHBORS, len(set(reference)) - 1),
            groups=[self.key.hash(patient) for patient in patients],
            reference_groups=reference,
        ).p_values


@dataclass(frozen=True)
class Found:
    """A counterfactual; images (C, *S) in the model's range."""

    row: dict[str, Any]
    start: float  # value of the scan
    curve: list[tuple[float, float]]  # distance and score
    image: torch.Tensor  # as the model decodes it
    difference: torch.Tensor
    z_sem: torch.Tensor | None  # (2 + R, D): of the scan, the counterfactual, and random changes of the same length


@dataclass(frozen=True)
class Finder:
    """Finds the counterfactual of a case."""

    session: sessions.Session
    users_model: UsersModel
    reference: Reference
    search: Search
    fast: inferers.DiffusionAutoencoderInferer  # of the search
    detail: Detail

    def scored(self, case: Case) -> ScoredCase:
        """A case with the scores of the user's model."""
        return ScoredCase(self.session.trained.open(case), self.users_model)

    def survey(self, cases: Sequence[Case], markers: Mapping[str, Floats]) -> list[tuple[float, list[dict[str, Any]]]]:
        """The value of each scan, NaN if there is none, and its rows of the test by pasting."""
        surveyed: list[tuple[float, list[dict[str, Any]]]] = []
        for case in track(cases, f"scoring {counted(len(cases), 'scan')}"):
            scored = self.scored(case)
            try:
                start = scored.value()
                surveyed.append((start, list(shortcuts.paste_rows(scored, start, markers))))
            except ScanError:  # is told when the case is explained
                surveyed.append((np.nan, []))
        return surveyed

    def check_seen(self, cases: Sequence[Case]) -> None:
        """Refuse a model whose decisions change if it gets only what the bundle sees of a scan."""
        num, middle, size = 0, self.users_model.middle, " x ".join(map(str, self.session.trained.image_shape[1:]))
        if not self.users_model.interface.takes_scan:
            text = "%s: gets the bundle's images, %s; if it takes the scans themselves, set input_size or input_from"
            logger.info(text, self.users_model.name, size)
            return
        for case in map(self.scored, cases):
            with suppress(ScanError):  # is told when the case is explained
                seen = case.stored_value(case.native.back(case.native.image))
                num += (case.value() > middle) != (seen > middle)
        decides = f"{self.users_model.name}: decides otherwise in {num} of {counted(len(cases), 'scan')}"
        text = f"{decides} if it only gets what the bundle sees, {size}"
        if num > _MOST_UNSEEN * len(cases) and not self.search.allow_unseen:
            raise ConfigError(
                f"{text}, so this cannot explain it; use a bundle with a larger image_size, or set allow_unseen"
            )
        logger.info("%s", text)

    def find(self, case: ScoredCase) -> Found:
        """The counterfactual of a case."""
        start, opened = case.value(), case.opened
        target = self._target(start)
        found = self._searched(case, target)
        fractions = torch.tensor(_FRACTIONS).to(found.change)
        images = self._decoded(opened, torch.outer(fractions, found.change)).cpu()
        values = [case.stored_value(case.native.edited(image, image - images[0], self.detail)) for image in images]
        towards = float(np.sign(target - start)) or 1.0
        crossing = _crossing(values, target, towards)
        reaching = [each for each, value in zip(_FRACTIONS, values, strict=True) if (value - target) * towards >= 0]
        for length in (crossing, *(each for each in reaching if each > crossing)):  # the curve may bend
            image = self._decoded(opened, length * found.change[None]).cpu()[0]
            value = case.stored_value(case.native.edited(image, image - images[0], self.detail))
            if reached := bool(length > 0 and (value - target) * towards >= 0):
                break
        score_of, difference = self.users_model.score_of, (image - images[0])[None].to(opened.images)
        distances = [float(found.change.norm()) * fraction for fraction in (*_FRACTIONS, length)]
        scores = [score_of(each) for each in (*values, value)]
        row: dict[str, Any] = {
            "id": opened.id,
            "score": score_of(start),
            "to": score_of(target),
            "counterfactual": scores[-1],
            "reached": reached,
            "distance": distances[-1],
            "mse": float((self._seen(opened, difference) - opened.images).square().mean()),
            "search_score": score_of(found.value),
            "exact_score": scores[_FRACTIONS.index(1.0)],
            "gradients": found.steps,
            "is_flat": found.is_flat,
        }
        z_sem = self._encoded(opened, difference, distances[-1], len(found.change))
        if z_sem is not None:
            z_norm = self.reference.components.statistics.normalise(z_sem[:2].numpy())
            (nearest,) = self.reference.nearest_other(z_norm[1:], opened.case.patient)
            row["is_itself"] = bool(np.linalg.norm(z_norm[1] - z_norm[0]) < nearest)
        points = sorted(zip(distances, scores, strict=True))
        return Found(row, start, points, image, difference[0].cpu(), z_sem)

    def _target(self, start: float) -> float:
        """The requested value; by default the other side of the decision, as sure as on this one or with a margin."""
        if self.search.to is not None:
            return self.users_model.value_of(self.search.to)
        middle, output_range = self.users_model.middle, self.users_model.interface.output_range
        ends = [_LEAST, _MOST]
        if output_range:
            ends = [min(output_range) + each * abs(output_range[1] - output_range[0]) for each in ends]
        least, most = (self.users_model.value_of(each) - middle for each in ends)
        gap = min(max(least, abs(start - middle)), most)
        return middle + (gap if start < middle else -gap)

    def _moved(self, opened: bundles.ModelCase, changes: torch.Tensor) -> torch.Tensor:
        """z_sem (N, D) of a case after changes (N, K) of its components."""
        components = self.reference.components
        basis = torch.from_numpy(components.directions[: changes.shape[1]]).to(changes)
        return opened.z_sem + changes @ basis * torch.from_numpy(components.statistics.std).to(changes)

    def _seen(self, opened: bundles.ModelCase, differences: torch.Tensor) -> torch.Tensor:
        """The scan with decoded differences (N, C, *S), as the user's model and the encoder see it."""
        return (opened.images + differences).clamp(*self.session.trained.model_range)

    def _searched(self, case: ScoredCase, target: float) -> counterfactual.Change:
        """The change that the search finds, by the fast decoder or with few steps."""
        from monai_diffae.networks.kernels import exact_convolutions

        opened, network = case.opened, self.session.trained.network
        at_once = inferers.images_at_once(opened.images.shape[2:])
        plain = self.fast.decode(opened.z_sem, network, opened.x_T)

        def part(changes: torch.Tensor) -> torch.Tensor:
            x_T = opened.x_T.expand(len(changes), *opened.x_T.shape[1:])
            decoded = self.fast.decode_with_gradient(self._moved(opened, changes), network, x_T)
            images = [self.users_model.image(case.native, each) for each in decoded - plain]
            return self.users_model.values(torch.cat(images)).to(changes)

        def value(changes: torch.Tensor) -> torch.Tensor:
            with exact_convolutions():
                return torch.cat([part(each) for each in changes.split(at_once)])

        num = len(self.reference.components.directions)
        has_gradient = self.users_model.values(self.users_model.image(case.native).requires_grad_()).requires_grad
        num = num if has_gradient else min(num, _NUM_COMPONENTS)
        evaluate = counterfactual.autograd(value) if has_gradient else counterfactual.finite_differences(value)
        largest = (2 * self.session.trained.z_channels) ** 0.5  # about the distance between two training cases
        return counterfactual.find_change(evaluate, num, target, largest=largest, device=opened.x_T.device)

    def _decoded(self, opened: bundles.ModelCase, changes: torch.Tensor) -> torch.Tensor:
        return opened.decode(self._moved(opened, changes))

    def tested(self, opened: bundles.ModelCase, test: shortcuts.DirectTest) -> list[Floats]:
        """The scan (C, *native S) after each change of a direct test."""
        z_sem, seed = opened.z_sem.cpu().numpy(), seed_of(self.search.seed, opened.id)
        random = image_noise((z_sem.shape[1],), seed, [self.search.num_random]).cpu().numpy()[0]
        moved = test.moves(z_sem, random / np.linalg.norm(random))
        images = opened.decode(torch.cat([opened.z_sem, torch.from_numpy(moved).to(opened.z_sem)])).cpu()
        return [opened.native.add_difference(image - images[0]) for image in images[1:]]

    def _encoded(
        self, opened: bundles.ModelCase, difference: torch.Tensor, distance: float, num: int
    ) -> torch.Tensor | None:
        """z_sem of scan, counterfactual and random changes; None if the encoder cannot look at decoded images."""
        trained = self.session.trained
        if not self.session.encoder_sees_decoded_images:
            return None
        seed = seed_of(self.search.seed, opened.id)
        random = image_noise((num,), seed, list(range(self.search.num_random))).to(opened.x_T.device)
        random *= distance / random.norm(dim=1, keepdim=True)
        images = self._decoded(opened, torch.cat([torch.zeros_like(random[:1]), random]))
        seen = self._seen(opened, torch.cat([difference, images[1:] - images[:1]]))
        encoded = inferers.encode_exactly(seen, trained.network, trained.inferer)
        return torch.cat([opened.z_sem, encoded]).cpu()


def _crossing(values: Sequence[float], target: float, towards: float) -> float:
    """The smallest fraction at which a score reaches the target, interpolated; that of the closest if none does."""
    gaps = [(value - target) * towards for value in values]  # at least 0: reached
    i = next((i for i, gap in enumerate(gaps) if gap >= 0), None)
    if i is None:
        return _FRACTIONS[int(np.argmax(gaps))]
    if i == 0:
        return 0.0
    low, high = _FRACTIONS[i - 1], _FRACTIONS[i]
    return low + (high - low) * min(1.0, 1.02 * gaps[i - 1] / (gaps[i - 1] - gaps[i]))
