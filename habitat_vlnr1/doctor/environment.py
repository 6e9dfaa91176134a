"""The environment: Python and packages, simulator, GPU, headless rendering, shared memory, limits."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from omegaconf import DictConfig
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from habitat_vlnr1.doctor.findings import Finding, error, ok, warning

GIB = 2**30
INSTALL = "uv pip install --require-hashes -r requirements/locked.txt"
CONDA = "conda create -n vlnr1 -c conda-forge -c aihabitat python=3.11 habitat-sim, then install this package there"
CHILD_SECONDS = 300
SHOWN = ("habitat-lab", "habitat-baselines", "torch", "transformers", "trl", "deepspeed", "numpy", "pyarrow")
IMPORTS = ("transformers", "datasets", "trl", "peft", "deepspeed")

# Imports each package in a process of its own, because a broken one can end the process.
_IMPORT = """
import importlib, json, sys
broken = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as problem:
        broken[name] = f"{type(problem).__name__}: {problem}"
print("\\n" + json.dumps(broken))
"""

# EGL's devices, and whether each one can be used: what habitat-sim does without a display.
_EGL = """
import ctypes, json
egl = ctypes.CDLL("libEGL.so.1")
egl.eglGetProcAddress.restype = ctypes.c_void_p
def function(name, result, *arguments):
    address = egl.eglGetProcAddress(name)
    return ctypes.CFUNCTYPE(result, *arguments)(address) if address else None
pointer, integer = ctypes.c_void_p, ctypes.c_int
query = function(b"eglQueryDevicesEXT", integer, integer, pointer, pointer)
string = function(b"eglQueryDeviceStringEXT", ctypes.c_char_p, pointer, integer)
display_of = function(b"eglGetPlatformDisplayEXT", pointer, integer, pointer, pointer)
initialize = function(b"eglInitialize", integer, pointer, pointer, pointer)
found = []
if query and string and display_of and initialize:
    devices, count = (pointer * 32)(), integer()
    query(32, devices, ctypes.byref(count))
    for device in devices[: count.value]:
        display = display_of(0x313F, device, None)  # EGL_PLATFORM_DEVICE_EXT
        works = bool(display) and bool(initialize(display, None, None))
        extensions = (string(device, 0x3055) or b"").decode()  # EGL_EXTENSIONS
        found.append({"works": works, "nvidia": "EGL_NV_device_cuda" in extensions})
print("\\n" + json.dumps(found))
"""


def run_child(code: str, *arguments: str) -> tuple[Any, str]:
    """The JSON that a child process prints last, or None and why there is none."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=CHILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {CHILD_SECONDS} s"
    try:
        return json.loads(done.stdout.splitlines()[-1]), ""
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return None, f"exit status {done.returncode}: {last}"


def packages(config: DictConfig) -> Iterator[Finding]:
    """Python, and every installed version against what this package asks for."""
    try:
        requires = metadata.requires("habitat-vlnr1") or []
        python = metadata.metadata("habitat-vlnr1")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        yield warning(
            "packages", "habitat-vlnr1 is not installed, so its requirements are unknown", "make .venv/installed"
        )
        return
    version = platform.python_version()
    good = SpecifierSet(python).contains(version)
    yield ok("python", version) if good else error("python", f"{version}, but {python} is needed", f"{CONDA}; or make")
    wrong = False
    for requirement in map(Requirement, requires):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        problem = package_problem(requirement)
        if problem:
            wrong = True
            yield error(requirement.name, problem, f"{INSTALL}, or uv pip install '{requirement}'")
    if not wrong:
        yield ok("packages", ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN))


def package_problem(requirement: Requirement) -> str | None:
    """What is wrong with the installed version of a package, or None."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"not installed, but {requirement} is needed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{version} is installed, but {requirement} is needed"


def imports(config: DictConfig) -> Iterator[Finding]:
    """Whether what training needs can be imported together."""
    broken, problem = run_child(_IMPORT, *IMPORTS)
    if broken is None:
        yield error("imports", f"importing {', '.join(IMPORTS)}: {problem}", INSTALL)
        return
    for name, reason in broken.items():
        level = warning if name == "deepspeed" and config.vlnr1.deepspeed is None else error
        yield level("imports", f"{name}: {reason}", INSTALL)
    if not broken:
        yield ok("imports", f"{', '.join(IMPORTS)} work")


def simulator(config: DictConfig) -> Iterator[Finding]:
    """The simulator that runs: real or embedded."""
    version = simulator_version()
    real_data = config.vlnr1.task.scenes is None
    if not version.endswith("+embedded"):
        fits = version.startswith("0.3")
        found = f"habitat-sim {version}, the real one"
        yield ok("simulator", found) if fits else warning("simulator", f"{found}; tested is 0.3", CONDA)
    elif real_data:
        yield warning(
            "simulator",
            f"habitat-sim {version}, the embedded stand-in: it makes its own navmesh and light, so results on "
            f"{config.vlnr1.task.name} cannot be compared with published ones",
            CONDA,
        )
    else:
        yield ok("simulator", f"habitat-sim {version}, the embedded stand-in")


def simulator_version() -> str:
    import habitat_sim

    return str(habitat_sim.__version__)


def gpu(config: DictConfig) -> Iterator[Finding]:
    """CUDA as PyTorch sees it."""
    import torch

    build = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in cards)
        yield ok("gpu", f"{build}; {len(cards)}: {names}")
        if config.vlnr1.model.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            yield warning("gpu", "no bfloat16 in hardware", "vlnr1.model.dtype=float32, and vlnr1.sft.bf16=false")
    elif config.vlnr1.model.path is None:
        yield ok("gpu", f"{build}; none, and the {config.vlnr1.model.build.size} model needs none")
    else:
        driver = "nvidia-smi works" if shutil.which("nvidia-smi") else "no nvidia-smi on PATH"
        yield warning(
            "gpu",
            f"{build}; PyTorch sees none ({driver}), and {config.vlnr1.model.path} on a CPU is for trials only",
            "install the NVIDIA driver, check CUDA_VISIBLE_DEVICES, or run the container with --gpus all",
        )


def rendering(config: DictConfig) -> Iterator[Finding]:
    """Headless rendering of the real simulator, through EGL."""
    if simulator_version().endswith("+embedded"):
        yield ok("rendering", "on the CPU by the embedded simulator: neither GPU nor EGL is used")
        return
    devices, problem = run_child(_EGL)
    nvidia = (
        "apt-get install libegl1 and the NVIDIA driver's GL libraries; in a container NVIDIA_DRIVER_CAPABILITIES=all"
    )
    if devices is None:
        yield error("rendering", f"EGL cannot be used: {problem}", nvidia)
    elif any(device["works"] and device["nvidia"] for device in devices):
        yield ok("rendering", f"EGL on {sum(device['nvidia'] for device in devices)} NVIDIA device(s)")
    elif any(device["works"] for device in devices):
        wanted = config.habitat.simulator.habitat_sim_v0.gpu_device_id
        text = "EGL in software only (Mesa): slow"
        remedy = f"for speed: {nvidia}"
        if wanted == -1:
            yield warning("rendering", text, remedy)
        else:
            remedy = f"habitat.simulator.habitat_sim_v0.gpu_device_id=-1; {remedy}"
            yield error("rendering", f"{text}, and the simulator asks for GPU {wanted}", remedy)
    else:
        yield error("rendering", f"EGL has {len(devices)} devices and none works", nvidia)


def limits(config: DictConfig) -> Iterator[Finding]:
    """Shared memory, which data loader workers fill, and open files, of which each environment takes some."""
    stat = os.statvfs("/dev/shm")
    free = stat.f_bavail * stat.f_frsize
    if free < GIB:
        yield warning(
            "shared memory",
            f"/dev/shm has {free / 2**20:.0f} MiB free; data loader workers and NCCL can end in 'bus error'",
            "run the container with --shm-size=8g or --ipc=host, or set vlnr1.sft.dataloader_num_workers=0",
        )
    else:
        yield ok("shared memory", f"/dev/shm has {free / GIB:.1f} GiB free")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    environments = max(config.habitat_baselines.num_environments, config.vlnr1.export.num_environments)
    needed = 256 + 32 * environments
    if resource.RLIM_INFINITY != soft < needed:
        yield warning("open files", f"at most {soft}, and {environments} environments want {needed}", "ulimit -n 4096")
    else:
        yield ok("open files", f"at most {'any number' if soft == resource.RLIM_INFINITY else soft}")
    cores = len(os.sched_getaffinity(0))
    if environments > cores:
        yield warning(
            "cores",
            f"{cores} for {environments} environments",
            f"habitat_baselines.num_environments={cores} vlnr1.export.num_environments={cores}",
        )
    else:
        yield ok("cores", f"{cores} for {environments} environments")
