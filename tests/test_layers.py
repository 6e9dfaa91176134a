"""The picture of the house, as docs/concepts.md draws it: no import runs up, no two files import each other."""

import ast
import subprocess
import sys

import pytest

from tests.paths import ROOT

FLOORS = (
    ("errors", "lookup", "actions", "memory", "prompt", "rewards", "qa_metrics"),
    ("files", "frame_files", "lifetime", "lock", "records", "questions", "episode_writer", "frame_store",
     "observations", "weights"),
    ("results", "episode_log", "report", "lvlm"),
    ("config", "optimisation", "settings", "obs_transform", "plan", "remote", "agent"),
    ("sim",),
    ("policies",),
    ("evaluation", "doctor", "serving"),
    ("interchange",),
    ("trainers",),
    ("register",),
)  # fmt: skip
"""Bottom up. A room imports from its own floor and from those below."""
VOCABULARY = FLOORS[0] + FLOORS[1]
APART = ({"sim", "lvlm"}, {"doctor", "evaluation"})
"""Rooms that never see each other."""


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in (ROOT / "habitat_vlnr1").rglob("*.py")}


def imports_of(module):
    """Our modules that a file names in import statements, wherever they stand in it."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "habitat_vlnr1":
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else node.module for name in whole)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)


def room_of(module):
    return module.split(".")[1] if "." in module else "habitat_vlnr1"


EDGES = {(module, target) for module in FILES for target in imports_of(module)}
ROOMS = {(room_of(a), room_of(b)) for a, b in EDGES if room_of(a) != room_of(b)}


def imported_by(module):
    code = f"import {module}, sys; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_every_room_has_its_floor():
    assert {room_of(module) for module in FILES} - {"habitat_vlnr1"} == {room for floor in FLOORS for room in floor}


def test_no_import_runs_up():
    height = {room: number for number, floor in enumerate(FLOORS) for room in floor} | {"habitat_vlnr1": -1}
    for room in (room for floor in FLOORS for room in floor):
        print(f"{room:14} → {', '.join(sorted(b for a, b in ROOMS if a == room))}")
    assert [(a, b) for a, b in EDGES if height[room_of(a)] < height[room_of(b)]] == []


def test_what_is_refused_is_refused_with_an_error_of_our_own():
    """So that a command can tell a wrong input, which is one line, from a fault of the program (errors.py)."""
    foreign = [
        f"{module}:{node.lineno}"
        for module in FILES
        for node in ast.walk(ast.parse(FILES[module].read_text()))
        if isinstance(node, ast.Raise) and isinstance(called := getattr(node.exc, "func", node.exc), ast.Name)
        if called.id in ("ValueError", "FileNotFoundError")
    ]
    assert foreign == []


def test_no_two_files_import_each_other():
    assert [(a, b) for a, b in EDGES if a < b and (b, a) in EDGES] == []


def test_rooms_that_stay_apart():
    assert [(a, b) for a, b in ROOMS if {a, b} in APART] == []


@pytest.mark.parametrize("room", [*VOCABULARY, "results", "episode_log", "config", "optimisation", "settings"])
def test_the_vocabulary_needs_neither_torch_nor_habitat(room):
    assert not {"torch", "habitat", "habitat_sim", "transformers"} & imported_by(f"habitat_vlnr1.{room}")


def test_interchange_needs_neither_torch_nor_habitat():
    for module in ("sharegpt", "parquet", "card", "submission"):
        assert not {"torch", "habitat", "transformers"} & imported_by(f"habitat_vlnr1.interchange.{module}")


def test_lvlm_never_loads_habitat():
    modules = imported_by("habitat_vlnr1.lvlm.checkpoint, habitat_vlnr1.lvlm.decoding, habitat_vlnr1.lvlm.inputs")
    assert not {"habitat", "habitat_sim", "habitat_baselines"} & modules


def test_sim_never_loads_transformers():
    modules = imported_by("habitat_vlnr1.sim.sensors, habitat_vlnr1.sim.measures, habitat_vlnr1.sim.env_factory")
    assert "transformers" not in modules
    assert not any(module.startswith("habitat_vlnr1.lvlm") for module in modules)


def test_registering_loads_neither_trl_nor_transformers():
    code = "import habitat, habitat_vlnr1.register as r, sys; r.register(); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "trl", "deepspeed", "qwen_vl_utils"} & set(done.stdout.split())
