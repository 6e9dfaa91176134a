"""No input is answered with a foreign exception: bytes and JSON near to whole files, as Hypothesis draws them.

`python -m tests.fuzz.coverage_guided` does the same for minutes, led by coverage (docs/reliability.md).
"""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS, attempt, use_seeds

QUICK = settings(max_examples=40, deadline=2000, suppress_health_check=list(HealthCheck), derandomize=True)
STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["", "\ud83d", "..", "/dev/zero", "a\0", "a" * 300, "<image>", 10**400, [[]], {"a": {}}, -1]),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    use_seeds(folder)
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_whole_files_are_read(folder, name):
    assert attempt(name, SEEDS[name][0], folder)


@pytest.mark.parametrize("name", TARGETS)
def test_bytes(folder, name):
    whole = SEEDS[name][0]

    @QUICK
    @given(st.data())
    def near_a_whole_file(data):
        at = data.draw(st.integers(0, len(whole)))
        cut = data.draw(st.sampled_from([0, 1, 5, len(whole)]))
        attempt(name, whole[:at] + data.draw(st.binary(max_size=6)) + whole[at + cut :], folder)

    near_a_whole_file()


JSON = [name for name in TARGETS if name not in ("answer", "parquet", "prompt")]


@pytest.mark.parametrize("name", JSON)
def test_json_with_something_else_in_a_place(folder, name):
    lines = [json.loads(line) for line in SEEDS[name][0].splitlines()] if name.endswith("lines") else None
    value = lines if lines is not None else json.loads(SEEDS[name][0])
    places = list(paths(value))

    @QUICK
    @given(st.data())
    def changed(data):
        other = replaced(value, data.draw(st.sampled_from(places)), data.draw(STRANGE), data.draw(st.booleans()))
        rows = other if lines is not None and isinstance(other, list) else [other]
        attempt(name, "".join(json.dumps(row) + "\n" for row in rows).encode(), folder)

    changed()


def paths(value, before=()):
    """Where something stands in a JSON value."""
    yield before
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from paths(child, (*before, key))


def replaced(value, path, new, drop):
    """The value with `new` at a place, or without that place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if drop and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(value[path[0]], path[1:], new, drop)
    return copy
