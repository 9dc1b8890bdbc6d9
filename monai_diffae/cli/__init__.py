"""The program ``monai-diffae``: it reads the commands off :data:`~monai_diffae.apps.commands.COMMANDS`."""

import ctypes
import difflib
import errno
import inspect
import json
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

from cyclopts import App, Group, Parameter, Token, convert, validators
from cyclopts.exceptions import CycloptsError

from monai_diffae import __version__
from monai_diffae.apps.command import plain_reason
from monai_diffae.apps.commands import COMMANDS, FORMER
from monai_diffae.bundle.code import trusting
from monai_diffae.errors import ConfigError, DiffAEError, MachineError, find_diffae_error, find_error, one_line

_EXIT_CODES = (
    "Exit codes: 0 done, 1 a bug, 2 usage, 3 done but some cases failed (failures.csv), 4 no usable case, "
    "5 unsafe input refused, 6 disk or device, 7 training not finite."
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # in <malloc.h>


def _shown_default(value: Any) -> Any:
    """No default for flags, and for options that are off by default; several values as they are typed."""
    if value is None or value is False or value in ((), {}):
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _exactly(type_: Any, tokens: Sequence[Token]) -> Any:
    """Values as cyclopts converts them, with two exceptions."""
    # A whole number has to be written as one: cyclopts rounds 2.7 to 3. And an option of one or several values always
    # has several: so the error for an unknown value lists the possible ones.
    if int in (type_, *get_args(type_)):
        for token in tokens:
            if not re.fullmatch(r"[+-]?[0-9]+", token.value):
                raise ValueError(f"{token.value!r} is not a whole number")
    several = next((member for member in get_args(type_) if get_origin(member) is Sequence), type_)
    return convert(several, tokens)


def build_app() -> App:
    """The program, with every command in its group."""
    app = App(
        name="monai-diffae",
        version=f"monai-diffae {__version__}",
        help="Diffusion autoencoders for medical scans. Start with: monai-diffae start scans/ first_hour, or, without "
        "scans of your own: monai-diffae demo --out demo",
        help_epilogue=_EXIT_CODES,
        help_flags=["--help", "-h"],
        default_parameter=Parameter(
            consume_multiple=1,  # an option without a value, as of an empty shell variable, would select every case
            converter=_exactly,
            negative="",
            show_default=_shown_default,
        ),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
    )
    groups = {name: Group(name, sort_key=i) for i, name in enumerate(dict.fromkeys(c.group for c in COMMANDS))}
    everywhere = Group("Everywhere", sort_key=99)
    app["--help"].group = app["--version"].group = everywhere
    arguments = Group("Arguments", sort_key=1)
    for command in COMMANDS:
        app.command(
            command.declared(),
            name=command.name,
            group=groups[command.group],
            group_arguments=arguments,
            group_parameters=arguments,
            help_epilogue=f"Example: {command.example}",
        )
    app.meta.group_parameters = everywhere
    app.meta.suppress_keyboard_interrupt = False
    app.meta.default(_launcher(app, {command.declared(): command.load() for command in COMMANDS}))
    return app


def _launcher(app: App, checked: Mapping[Callable[..., Any], Callable[..., Any]]) -> Callable[..., int]:
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        json_output: Annotated[bool, Parameter(name="--json")] = False,
        quiet: Annotated[bool, Parameter(name=["--quiet", "-q"])] = False,
        debug: bool = False,
        trust: bool = False,
        threads: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    ) -> int:
        """Run a command and show its result.

        Args:
            tokens: the command and its arguments.
            json_output: Print the result as JSON.
            quiet: Show only warnings and errors.
            debug: Show tracebacks and every line of the log.
            trust: Build what the bundle names although it can do more than compute: its author's code runs.
            threads: Number of CPU threads; by default one per core.
        """
        _set_up_logging(quiet, debug)
        _set_up_torch(threads)
        if tokens and tokens[0] in FORMER:
            raise ConfigError(f"{tokens[0]}: is now monai-diffae {FORMER[tokens[0]]}")
        function, bound = parse(app, tokens)
        run = checked.get(function, function)  # help and version are functions of their own
        try:
            with trusting() if trust else nullcontext():
                return _show(run(*bound.args, **bound.kwargs), as_json=json_output)
        except DiffAEError as error:
            typed = {Path(token).name for token in tokens}
            raise type(error)(_with_dashes(error.on_terminal(), inspect.signature(run).parameters, typed)) from error

    return launch


def _set_up_torch(threads: int | None) -> None:
    """Set what torch's libraries read when they are loaded."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    # Threads that spin while they wait hold up the one that they wait for, if other programs use the processors.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # glibc gives the memory of a step back to the system, which clears it before the next step gets it.
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 * 2**20)


def parse(app: App, tokens: Iterable[str]) -> tuple[Callable[..., Any], inspect.BoundArguments]:
    """Read a command line: the command's function and its arguments, whose types are converted and ranges not checked.

    Example:
        >>> function, bound = parse(build_app(), ["train", "my_model", "scans.csv"])
        >>> function.__name__, str(bound.arguments["cohort"])
        ('train', 'scans.csv')
    """
    function, bound, _ = app.parse_args(_numbers_apart(tokens))
    return function, bound


def _numbers_apart(tokens: Iterable[str]) -> list[str]:
    """``-2 0 2`` for ``-2,0,2``, which cyclopts (5.5) takes for the names of options.

    Example:
        >>> _numbers_apart(["edit", "--strengths", "-2,0,2", "a,b"])
        ['edit', '--strengths', '-2', '0', '2', 'a,b']
    """
    numbers = re.compile(r"-[\d.][\d.eE+-]*(,[\d.eE+-]+)+")
    return [word for token in tokens for word in (token.split(",") if numbers.fullmatch(token) else [token])]


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{'warning: ' if record.levelno >= logging.WARNING else ''}{super().format(record)}"


def _set_up_logging(quiet: bool, debug: bool) -> None:
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("monai_diffae").setLevel(level)
    if not debug:
        warnings.filterwarnings("ignore", category=DeprecationWarning)


def _show(result: Any, *, as_json: bool) -> int:
    """Print a command's result, and return the exit code."""
    from monai_diffae.apps.result import Result

    if not isinstance(result, Result):  # help and version
        return 0
    if as_json:
        print(json.dumps(result.json(), indent=2))
    else:
        for line in result.lines():
            print(line)
    if result.incomplete is None:
        return 0
    print(result.incomplete, file=sys.stderr)
    return 3


def _usage(error: CycloptsError) -> str:
    """One line; cyclopts (5.5) also checks annotations, as the commands do, if pydantic is imported already."""
    details = getattr(error.__cause__, "errors", None)
    if details is None or error.argument is None:
        return " ".join(str(error).split())
    return f"{error.argument.name}: {plain_reason(details()[0])}"


def _with_dashes(message: str, names: Collection[str], typed: Collection[str]) -> str:
    """An error with its arguments as a command line writes them; a file or folder keeps the name that was typed."""
    # ``--batch-size: 0 is below 1`` for ``batch_size: 0 is below 1``, and "set --overwrite" for "set overwrite". Keys
    # of a training's configuration that MONAI names otherwise become the command's arguments.
    name = message.partition(":")[0]
    if name in names and name not in typed:
        message = f"--{message.replace(name, name.replace('_', '-'), 1)}"
    unknown = re.match(r"unknown config key '(\w+)'", message)
    if unknown and (option := difflib.get_close_matches(unknown[1], names, 1)):
        message = message.replace("did you mean", f"did you mean --{option[0].replace('_', '-')}, or")
    options = {**{name: name for name in names}, "output_dir": "out", "dataset_dir": "cohort"}
    advice = rf"\b(set|add|omit|another) ({'|'.join(options)})\b"
    return re.sub(advice, lambda match: f"{match[1]} --{options[match[2]].replace('_', '-')}", message)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The program: an error of ours becomes one line and an exit code; ``--debug`` shows tracebacks."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - it is None if it was closed
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError:  # else Python reports it once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    try:
        code: int = build_app().meta(arguments) or 0
        sys.stdout.flush()
        return code
    except CycloptsError as error:
        print(f"error: {_usage(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has seen enough, as in `monai-diffae info my_model | head -1`
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if find_error(error, KeyboardInterrupt):  # also if cleaning up failed because of it
            print("interrupted; what is complete is kept: run the same command again", file=sys.stderr)
            return 130
        if "--debug" in arguments:
            raise
        known = find_diffae_error(error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            known = error = MachineError("the disk, or the standard output, is full; free space")
        print(f"error: {one_line(error)}", file=sys.stderr)
        if known is None:
            print("this is a bug; --debug shows where", file=sys.stderr)
        return known.exit_code if known is not None else 1
