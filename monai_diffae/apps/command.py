"""The decorator ``command``: checks a function's arguments, for the command line, bundle runs and Python alike."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from monai_diffae.bundle.layout import MODEL, MODELS
from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use

with on_first_use:
    import pydantic

    from monai_diffae.data import cohorts

R = TypeVar("R")

_FILES = (".csv", ".tsv", ".json")  # results that are no folder
_PLAIN_REASONS = {
    "literal_error": "is not one of {expected}",
    "greater_than_equal": "is below {ge:.15g}",
    "greater_than": "is not above {gt:.15g}",
    "less_than_equal": "is above {le:.15g}",
    "less_than": "is not below {lt:.15g}",
    "too_short": "is too short; give at least {min_length}",
}


def command(function: Callable[..., R]) -> Callable[..., R]:
    """Check and convert a function's arguments by its annotations before it runs.

    A path-like becomes a ``Path``, a mapping a settings dataclass, whose fields can also be given directly.
    """
    # the argument that each field of a settings dataclass belongs to, by the field's name
    owners = {
        field.name: name
        for name, parameter in inspect.signature(function).parameters.items()
        if is_dataclass(parameter.default)
        for field in fields(parameter.default)
    }
    annotations = {name: str(each.annotation) for name, each in _flat_signature(function).parameters.items()}

    @functools.wraps(function)
    def arguments(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    @functools.cache
    def checks() -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        # evaluated in the namespace of the function's own module; pydantic would use another one
        arguments.__annotations__ = get_type_hints(function, include_extras=True)
        config = pydantic.ConfigDict(
            extra="forbid",
            revalidate_instances="always",
            arbitrary_types_allowed=True,
            allow_inf_nan=False,
            coerce_numbers_to_str=True,  # MONAI's command line makes numbers of ids such as 101
        )
        return pydantic.validate_call(config=config)(arguments)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> R:
        for name, value in kwargs.items():  # True would become 1
            if isinstance(value, bool) and "bool" not in annotations.get(name, "bool"):
                raise ConfigError(f"{name}: {value} cannot be used; give a number or text")
        args = tuple(map(_as_path, args))
        packed = _packed({name: _as_path(value) for name, value in kwargs.items()}, owners)
        try:
            checked_args, checked_kwargs = checks()(*args, **packed)
        except pydantic.ValidationError as error:
            raise ConfigError(_one_line(error, function)) from None
        signature = inspect.signature(function)
        bound = signature.bind(*checked_args, **checked_kwargs).arguments
        bundle, cohort = bound.get("bundle"), bound.get("cohort")  # a bundle is a folder, or a shipped one's name
        if isinstance(cohort, Path):
            cohorts.check_cohort_exists(cohort)  # before torch is imported
        bundle = bundle if isinstance(bundle, Path) and bundle.is_dir() else None
        out = bound.get("out")
        refuse_results_among_scans(cohort, out=out, bundle=bundle)
        trains = "training" in signature.parameters
        if bundle and isinstance(out, Path) and not trains and _is_other_bundle(out, bundle):
            raise ConfigError(f"out: {out.name} is another bundle; choose another folder for the results")
        return function(*checked_args, **checked_kwargs)

    run.__signature__ = _flat_signature(function)  # type: ignore[attr-defined]
    return run


def refuse_results_among_scans(cohort: Any, **folders: Any) -> None:
    """Refuse folders for results inside a cohort's folder, where the next command would take pictures for scans."""
    if not isinstance(cohort, Path) or not cohort.is_dir():
        return
    for name, folder in folders.items():
        is_folder = isinstance(folder, Path) and folder.suffix not in _FILES
        if is_folder and folder.resolve().is_relative_to(cohort.resolve()):
            raise ConfigError(
                f"{name}: {folder.name} lies in the folder of scans, where its pictures would be taken for scans; "
                f"choose another {name}"
            )


def _is_other_bundle(out: Path, bundle: Path) -> bool:
    return (out / MODELS / MODEL).is_file() and out.resolve() != bundle.resolve()


def config_file(bundle: Path, config: str, overlays: Iterable[Path] = ()) -> Path:
    """The file of one of a bundle's configurations; checks that it and the overlays exist."""
    file = bundle / "configs" / f"{config}.json"
    if not file.is_file():
        raise ConfigError(
            f"{bundle.name}: there is no configs/{config}.json; make a bundle with monai-diffae init, or choose another"
        ).at(bundle)
    for overlay in overlays:
        if not overlay.is_file():
            raise ConfigError(f"overlays: there is no file {overlay.name}; the bundle's configs/overlays has some")
    return file


def _as_path(value: Any) -> Any:
    """The path of the result of another command, which pydantic would refuse; anything else as it is."""
    return Path(value) if isinstance(value, os.PathLike) else value


def _packed(kwargs: Mapping[str, Any], owners: Mapping[str, str]) -> dict[str, Any]:
    """Arguments with the fields that were given directly put into their dataclasses."""
    packed = {name: value for name, value in kwargs.items() if name not in owners}
    for name in kwargs.keys() & owners.keys():
        settings = packed.get(owners[name], {})
        if is_dataclass(settings):
            settings = {field.name: getattr(settings, field.name) for field in fields(settings)}
        packed[owners[name]] = {**settings, name: kwargs[name]} if isinstance(settings, Mapping) else settings
    return packed


def _flat_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with the fields of the settings dataclasses in their place, as the call accepts them."""
    signature = inspect.signature(function)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        settings = parameter.default
        if not is_dataclass(settings):
            parameters.append(parameter)
            continue
        for field in fields(settings):
            default = getattr(settings, field.name)
            parameters.append(parameter.replace(name=field.name, default=default, annotation=field.type))
    return signature.replace(parameters=parameters)


def _one_line(error: pydantic.ValidationError, function: Callable[..., Any]) -> str:
    """One line about the first error, with the argument's name."""
    details = error.errors()[0]
    first, *rest = details["loc"]
    if details["type"] == "unexpected_positional_argument":
        return (
            f"{function.__name__}: {details['input']!r} has no name; give all but the first {first} arguments by name"
        )
    # pydantic reports a positional argument by its index, and a field of a dataclass by argument and field
    name = list(inspect.signature(function).parameters)[first] if isinstance(first, int) else str(first)
    if rest and isinstance(rest[0], str) and is_dataclass(inspect.signature(function).parameters[name].default):
        name = rest[0]
    if details["type"].startswith("unexpected"):
        return f"{name}: {function.__name__} takes no such argument"
    if details["type"].startswith("missing"):
        return f"{name}: is required; give it a value"
    return f"{name}: {plain_reason(details)}"


def plain_reason(details: Mapping[str, Any]) -> str:
    """What is wrong with a value, by one of pydantic's errors, such as ``0 is below 1``."""
    kind, value = details["type"], details["input"]
    context = {
        key: str(value).replace("'", "").replace(" or ", ", ") if key == "expected" else value
        for key, value in details.get("ctx", {}).items()
    }
    if kind in _PLAIN_REASONS:
        return f"{value!r} {_PLAIN_REASONS[kind].format(**context)}"
    return f"{value!r} cannot be used: {details['msg'][0].lower()}{details['msg'][1:]}"
