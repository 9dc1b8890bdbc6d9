"""Runs Hypothesis for a number of examples, or for a time; mutates real files and real JSON."""

import copy
import json
import time

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from monai_diffae.errors import DiffAEError

LONGEST = 300
"""The longest message of an error."""


def fuzz(check, inputs, *, examples, seconds=0.0):
    """Check examples, the same ones in each run; then others until the time is over."""
    until, number = time.monotonic() + seconds, 0
    options = {"deadline": None, "database": None, "derandomize": False, "suppress_health_check": list(HealthCheck)}
    while not number or time.monotonic() < until:
        settings(max_examples=examples, **options)(seed(number)(given(inputs)(check)))()
        number += 1


def only_own_errors(call):
    """Whether a call succeeds; its error must be one of the package, in one line."""
    try:
        call()
    except DiffAEError as error:
        line = str(error)
    else:
        return True
    assert len(line.splitlines()) == 1, line
    assert len(line) <= LONGEST, line
    return False


_NUMBERS = [b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x00\x00\xc0\x7f", b"999999999", b"-1"]
MUTATIONS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 600), st.integers(0, 1 << 16)),
        st.sampled_from([None, None, None, 0, 1, 9, 64, 1 << 30]),
        st.one_of(st.binary(max_size=1), st.binary(max_size=64), st.sampled_from(_NUMBERS)),
    ),
    min_size=1, max_size=6,
)  # fmt: skip
"""Places, the lengths of what is replaced there (None: as long as the new bytes), and new bytes."""


def mutated(data, mutations):
    """A file's bytes, of which slices are replaced."""
    raw = bytearray(data)
    for place, length, content in mutations:
        at = place % (len(raw) + 1)
        raw[at : at + (len(content) if length is None else length)] = content
    return bytes(raw)


NASTY_TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", " ", "nan", "NA", "1e999", "-0", "../../x", "a\0b", "\n", '"', ";", "x" * 500, "\ud800", "\u202e"]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 64), st.floats(allow_nan=True), NASTY_TEXT, st.sampled_from([10**400, -1])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
JSON_CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "set", "delete"]), st.lists(st.integers(0, 99), max_size=5), JSON),
    min_size=1, max_size=4,
)  # fmt: skip


def changed_json(content, changes):
    """A JSON value in which parts are replaced or deleted."""
    root = {"": copy.deepcopy(content)}
    for kind, path, value in changes:
        holder = root
        key = ""
        for step in path:
            inner = holder[key]
            if not isinstance(inner, (dict, list)) or not inner:
                break
            holder, key = inner, [*inner][step % len(inner)] if isinstance(inner, dict) else step % len(inner)
        if kind == "delete" and holder is not root:
            del holder[key]
        else:
            holder[key] = value
    return root[""]


def as_text(content):
    """JSON as a file holds it."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", errors="surrogatepass")
