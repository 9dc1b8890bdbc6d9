"""The counterfactual of a case, and the training cases that define its distance, plausibility and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae.apps.settings import Seed
from monai_diffae.apps.synthesis.edit import nearest_other_patient
from monai_diffae.data.cases import PatientKey
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.lazy import counterfactual, inferers, latents, np, npt, pd, sessions, tables, targets, torch

if TYPE_CHECKING:
    from monai_diffae.apps.synthesis.users_model import UsersModel

    Floats = npt.NDArray[np.floating[Any]]

_NUM_COMPONENTS = 16  # of the search by finite differences
_LEAST, _MOST = 0.8, 0.99  # probability of the other class that a counterfactual should have
SEARCH_STEPS = 5  # of a decoding in the search, without a fast decoder
_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the change, at which the exact decoder is asked
_NUM_NEIGHBORS = 5


@Parameter(name="*", group=Group("Search", sort_key=2))
@dataclass(frozen=True)
class Search:
    """What is searched for, and how."""

    to: float | None = None
    """Score that a counterfactual should have; by default the other side of .5, as far away as the scan's score, but at
    least .8 (or .2) and at most .99 (or .01)."""
    labels: Sequence[str] = ()
    """Label columns of the embeddings that may change; by default all with two classes, and numbers."""
    num_random: Annotated[int, Ge(1)] = 4
    """Random changes of the same length per case, with which the counterfactual is compared."""
    seed: Seed = 0
    """Random seed of these changes and of the bootstrap."""


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
        return nearest_other_patient(self.table, self.key, self.components.statistics)

    def directions(self, search: Search, model: str) -> tuple[list[latents.Direction], dict[str, str]]:
        """The directions of labels, fitted to the training cases, and why others have none."""
        known = tables.check_labels(self.table, {"labels": search.labels})
        z_train, patients = tables.z_matrix(self.training), self.training["patient"].tolist()
        directions, omitted = [], {}
        for name in search.labels or known:
            values = self.training[name].tolist()
            try:
                if not search.labels and (reason := targets.reason_against(values, name)):
                    raise ConfigError(reason)
                fitted = latents.fit_direction(
                    z_train, values, target=name, model=model, groups=patients, seed=search.seed
                )
                if fitted.may_be_chance:
                    raise ConfigError(f"label '{name}': z_sem may not predict it ({fitted.score_text}), so omit it")
                directions.append(fitted)
            except ConfigError as error:
                if search.labels:
                    raise
                omitted[name] = str(error)
        return directions, omitted

    def outlier_p(self, z_sem: Floats, patients: Sequence[str]) -> Floats:
        """The p-values (N,) of z_sem (N, D) among the training cases."""
        reference = self.training["patient"].tolist()
        return latents.outlier_scores(
            z_sem, tables.z_matrix(self.training), k=min(_NUM_NEIGHBORS, len(set(reference)) - 1),
            groups=[self.key.hash(patient) for patient in patients], reference_groups=reference,
        ).p_values  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A counterfactual; images (C, *S) in the model's range."""

    row: dict[str, Any]
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

    def find(self, coded: sessions.CodedCase) -> Found:
        """The counterfactual of a case."""
        start = self._values(coded, torch.zeros_like(coded.image))[0]
        target = self._target(start)
        found = self._searched(coded, target)
        length, images, values = self._checked(coded, found.change, target)
        score_of = self.users_model.score_of
        scores = [score_of(value) for value in values]
        distances = [float(found.change.norm()) * fraction for fraction in (*_FRACTIONS, length)]
        difference = images[-1:] - images[:1]
        row: dict[str, Any] = {
            "id": coded.case.id, "score": score_of(start), "to": score_of(target),
            "counterfactual": scores[-1],
            "reached": bool((values[-1] - target) * np.sign(target - start) >= 0), "distance": distances[-1],
            "mse": float((self._seen(coded, difference) - coded.image).square().mean()),
            "search_score": score_of(found.value), "exact_score": scores[_FRACTIONS.index(1.0)],
            "gradients": found.steps, "is_flat": found.is_flat,
        }  # fmt: skip
        z_sem = self._encoded(coded, difference, distances[-1], len(found.change))
        if z_sem is not None:
            z_norm = self.reference.components.statistics.normalise(z_sem[:2].numpy())
            (nearest,) = self.reference.nearest_other(z_norm[1:], coded.case.patient)
            row["is_itself"] = bool(np.linalg.norm(z_norm[1] - z_norm[0]) < nearest)
        return Found(row, sorted(zip(distances, scores, strict=True)), images[-1].cpu(), difference[0].cpu(), z_sem)

    def _target(self, start: float) -> float:
        """The requested value; by default the other side of the decision, as sure as on this one or with a margin."""
        if self.search.to is not None:
            return self.users_model.value_of(self.search.to)
        is_value = self.users_model.interface.activation == "none"
        if is_value and not 0 <= start <= 1:
            raise ConfigError(f"to: a score is {start:.4g}, which is no probability; set to to the score that you want")
        middle = 0.5 if is_value else 0.0
        least, most = (self.users_model.value_of(probability) - middle for probability in (_LEAST, _MOST))
        gap = min(max(least, abs(start - middle)), most)
        return middle + (gap if start < middle else -gap)

    def _moved(self, coded: sessions.CodedCase, changes: torch.Tensor) -> torch.Tensor:
        """z_sem (N, D) of a case after changes (N, K) of its components."""
        components = self.reference.components
        basis = torch.from_numpy(components.directions[: changes.shape[1]]).to(changes)
        return coded.z_sem + changes @ basis * torch.from_numpy(components.statistics.std).to(changes)

    def _seen(self, coded: sessions.CodedCase, differences: torch.Tensor) -> torch.Tensor:
        """The scan with decoded differences (N, C, *S), as the user's model and the encoder see it."""
        return (coded.image + differences).clamp(*self.session.trained.model_range)

    def _searched(self, coded: sessions.CodedCase, target: float) -> counterfactual.Change:
        """The change that the search finds, by the fast decoder or with few steps."""
        from monai_diffae.inferers.reconstruction import images_at_once
        from monai_diffae.networks.kernels import exact_convolutions

        network, at_once = self.session.trained.network, images_at_once(coded.image.shape[2:])
        plain = self.fast.decode(coded.z_sem, network, coded.x_T)

        def part(changes: torch.Tensor) -> torch.Tensor:
            x_T = coded.x_T.expand(len(changes), *coded.x_T.shape[1:])
            decoded = self.fast.decode_with_gradient(self._moved(coded, changes), network, x_T)
            return self.users_model.values(self._seen(coded, decoded - plain))

        def value(changes: torch.Tensor) -> torch.Tensor:
            with exact_convolutions():
                return torch.cat([part(each) for each in changes.split(at_once)])

        num = len(self.reference.components.directions)
        has_gradient = self.users_model.values(coded.image.clone().requires_grad_()).requires_grad
        num = num if has_gradient else min(num, _NUM_COMPONENTS)
        evaluate = counterfactual.autograd(value) if has_gradient else counterfactual.finite_differences(value)
        largest = (2 * self.session.trained.z_channels) ** 0.5  # about the distance between two training cases
        return counterfactual.find_change(evaluate, num, target, largest=largest, device=coded.x_T.device)

    def _checked(
        self, coded: sessions.CodedCase, change: torch.Tensor, target: float
    ) -> tuple[float, torch.Tensor, list[float]]:
        """Where along a change exact decodings reach the target; the images of all fractions and of this one."""
        fractions = torch.tensor(_FRACTIONS).to(change)
        images = self._decoded(coded, torch.outer(fractions, change))
        values = self._values(coded, images - images[:1])
        length = _crossing(values, target)
        image = self._decoded(coded, length * change[None])
        (value,) = self._values(coded, image - images[:1])
        if length not in _FRACTIONS and (value - target) * (target - values[0]) < 0:  # the curve bends
            length = next(fraction for fraction in _FRACTIONS if fraction > length)
            image, value = images[[_FRACTIONS.index(length)]], values[_FRACTIONS.index(length)]
        return length, torch.cat([images, image]), [*values, value]

    def _decoded(self, coded: sessions.CodedCase, changes: torch.Tensor) -> torch.Tensor:
        from monai_diffae.inferers.reconstruction import images_at_once

        at_once = images_at_once(coded.image.shape[2:])  # a fixed number, on which the last bits depend
        return sessions.decode_in_batches(self.session.trained, self._moved(coded, changes), coded.x_T, at_once)

    def _values(self, coded: sessions.CodedCase, differences: torch.Tensor) -> list[float]:
        with torch.no_grad():
            values = self.users_model.values(self._seen(coded, differences))
        if not values.isfinite().all():
            raise ScanError(f"{coded.case.id}: the output of {self.users_model.name} is not finite; check the scan")
        return [float(value) for value in values]

    def _encoded(
        self, coded: sessions.CodedCase, difference: torch.Tensor, distance: float, num: int
    ) -> torch.Tensor | None:
        """z_sem of scan, counterfactual and random changes; None if the encoder cannot look at decoded images."""
        trained = self.session.trained
        if not self.session.encoder_sees_decoded_images:
            return None
        seed = seed_of(self.search.seed, coded.case.id)
        random = image_noise((num,), seed, list(range(self.search.num_random))).to(coded.x_T.device)
        random *= distance / random.norm(dim=1, keepdim=True)
        images = self._decoded(coded, torch.cat([torch.zeros_like(random[:1]), random]))
        seen = self._seen(coded, torch.cat([difference, images[1:] - images[:1]]))
        encoded = inferers.encode_exactly(seen, trained.network, trained.inferer)
        return torch.cat([coded.z_sem, encoded]).cpu()


def _crossing(values: Sequence[float], target: float) -> float:
    """The smallest fraction at which a score reaches the target, interpolated; that of the closest if none does."""
    towards = 1.0 if target >= values[0] else -1.0
    gaps = [(value - target) * towards for value in values]  # at least 0: reached
    i = next((i for i, gap in enumerate(gaps) if gap >= 0), None)
    if i is None:
        return _FRACTIONS[int(np.argmax(gaps))]
    if i == 0:
        return 0.0
    low, high = _FRACTIONS[i - 1], _FRACTIONS[i]
    return low + (high - low) * min(1.0, 1.02 * gaps[i - 1] / (gaps[i - 1] - gaps[i]))
