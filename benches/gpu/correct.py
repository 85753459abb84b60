"""All tests that need a GPU: the kernels' suite with a harness that runs on it, the models' tests, and both under compute-sanitizer.

Comes in: the packed test programs and the kernels' sources. Goes out: for each, whether it passed and its closing line.
"""

import os
import shutil
from pathlib import Path

from .stages import NotMeasured, Place, last_line, logged

# Tests of `models` that open a CUDA device where there is one, and those of its suite: golden outputs of every family there.
MODEL_TESTS = ["candle", "cuda"]
SUITE_TESTS = ["cuda", "decoders::", "--skip", "on_candle", "--skip", "on_kernels"]
SANITIZERS = ["memcheck", "racecheck", "synccheck"]
# A context is made for each case; a card takes some at once.
THREADS = 8


def nvcc() -> str:
    """The compiler."""
    found = shutil.which("nvcc") or next((p for p in ["/usr/local/cuda/bin/nvcc"] if os.path.isfile(p)), None)
    if found is None:
        raise NotMeasured("no nvcc; install the CUDA toolkit, or put its bin folder on PATH")
    return found


def build_harness(place: Place) -> Path:
    """Builds the kernels' harness for the card of this machine."""
    program = place.out.resolve() / "kernels-harness"
    source = place.pack / "kernels" / "tests" / "cuda" / "harness.cpp"
    command = [nvcc(), "-std=c++20", "-x", "cu", "-w", "-O1", "-lineinfo", "-arch=native", "-o", str(program), str(source)]
    if logged(place, "build-harness", command, timeout=300) != 0:
        raise NotMeasured(f"the harness does not build: {last_line(place, 'build-harness', 'error')}")
    return program


def check(place: Place, results: dict, name: str, command: list[str], environment: dict[str, str], timeout: float) -> None:
    """Runs one program of tests and notes how it ended."""
    code = logged(place, name, command, timeout, environment)
    passed = {"passed": code == 0, "exit_code": code, "closing_line": last_line(place, name, "test result:")}
    results.setdefault("runs", {})[name] = passed


def tests(place: Place, results: dict) -> None:
    """Every GPU test."""
    environment = place.environment()
    if place.device.startswith("cuda"):
        environment["NEUROGRID_TEST_CUDA_HARNESS"] = str(build_harness(place))
        command = [str(place.program("kernels-tests")), f"--test-threads={THREADS}"]
        check(place, results, "kernels", command, environment, timeout=300)
    command = [str(place.program("models-tests")), *MODEL_TESTS, "--test-threads=1", "--show-output"]
    environment["NEUROGRID_TEST_DATA"] = str(place.pack.resolve() / "models" / "tests" / "data")
    check(place, results, "models", command, environment, timeout=200)
    command = [str(place.program("models-suite")), *SUITE_TESTS, "--test-threads=1", "--show-output"]
    check(place, results, "models-suite", command, environment, timeout=200)
    for name, words in [("models", "skipped: CUDA"), ("models-suite", "skipped: Cuda")]:
        log = (place.out / f"{name}.log").read_text(errors="replace")
        if place.device.startswith("cuda") and words in log:
            results["runs"][name] = {"passed": False, "exit_code": 0, "closing_line": "the tests found no CUDA device"}
    failed = [name for name, run in results["runs"].items() if not run["passed"]]
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed; see the logs")


def sanitizer(place: Place, results: dict) -> None:
    """The kernels' suite and the ops of `models` under each of compute-sanitizer's tools."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.isfile(tool):
        raise NotMeasured("no compute-sanitizer; it is part of the CUDA toolkit")
    harness = build_harness(place)
    environment = place.environment()
    for name in SANITIZERS:
        # The harness answers on stdout, so the tool's own words go to a file.
        watched = place.out.resolve() / f"harness-{name}"
        log = place.out.resolve() / f"sanitizer-{name}-%p.txt"
        watched.write_text(f'#!/bin/sh\nexec {tool} --tool {name} --error-exitcode 9 --log-file {log} {harness} "$@"\n')
        watched.chmod(0o755)
        environment["NEUROGRID_TEST_CUDA_HARNESS"] = str(watched)
        command = [str(place.program("kernels-tests")), f"--test-threads={THREADS}"]
        # Under racecheck attention takes minutes; what is checked then is one test of each op.
        if name == "racecheck":
            command += ["alone", "gelu", "glu", "norm", "pool", "rotary"]
        check(place, results, f"kernels-{name}", command, environment, timeout=150)
        for left in place.out.glob(f"sanitizer-{name}-*.txt"):
            if "ERROR SUMMARY: 0 errors" in left.read_text(errors="replace"):
                left.unlink()
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", str(place.program("models-tests")), "agree", "--test-threads=1"]
    check(place, results, "models-memcheck", command, place.environment(), timeout=100)
    failed = [name for name, run in results["runs"].items() if not run["passed"]]
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed; see the logs")
