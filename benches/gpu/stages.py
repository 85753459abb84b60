"""What all stages share: where things lie, programs with the right libraries, and results that are written as they come.

Comes in: a folder with what was packed, a folder for results. Goes out: one JSON file for each stage. It measures nothing itself.
"""

import glob
import json
import os
import platform
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class NotMeasured(Exception):
    """A stage cannot run here; the message says why and what would help."""


@dataclass
class Place:
    """Where things lie, and on which device our programs run."""

    pack: Path
    out: Path
    device: str = "cuda:0"
    models: Path = field(init=False)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.models = self.out / "models"

    def program(self, name: str) -> Path:
        """One of the packed programs."""
        path = self.pack / "bin" / name
        if not path.is_file():
            raise NotMeasured(f"{path} is not there: pack it again with `cargo xtask gpu --pack`")
        return path

    def environment(self) -> dict[str, str]:
        """The environment in which our programs find CUDA's libraries: the toolkit's, or those that came with PyTorch."""
        return {**os.environ, "LD_LIBRARY_PATH": ":".join([*library_folders(), os.environ.get("LD_LIBRARY_PATH", "")])}


def library_folders() -> list[str]:
    """Folders that hold CUDA's libraries, the toolkit's first."""
    patterns = ["/usr/local/cuda/lib64"]
    for packages in [*site.getsitepackages(), *[path for path in sys.path if path.endswith("-packages")]]:
        patterns.append(f"{packages}/nvidia/*/lib")
    found = [folder for pattern in patterns for folder in sorted(glob.glob(pattern))]
    return list(dict.fromkeys(found))


def gpu() -> str | None:
    """Name and driver of the first GPU, or None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    lines = answer.stdout.strip().splitlines()
    return lines[0] if answer.returncode == 0 and lines else None


def memory_used_mib() -> int:
    """Memory of the first GPU that is taken, by anyone."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.split()[0])


def median(values: list[float]) -> float:
    """The middle one; of an even number the upper of the two."""
    return sorted(values)[len(values) // 2]


def run_stage(place: Place, name: str, stage: Callable[[Place, dict], None]) -> dict:
    """Runs one stage. What it put into its results is written however it ends."""
    results: dict = {"stage": name, "gpu": gpu(), "machine": platform.platform(), "cpus": os.cpu_count()}
    begun = time.monotonic()
    print(f"== {name}", flush=True)
    try:
        stage(place, results)
        results["outcome"] = "done"
    except NotMeasured as why:
        results["outcome"] = f"not measured: {why}"
    except Exception as error:  # one stage's failure must not cost the others' results
        results["outcome"] = f"FAILED: {type(error).__name__}: {error}"
    results["seconds"] = round(time.monotonic() - begun, 1)
    (place.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{name}: {results['outcome']} ({results['seconds']} s)", flush=True)
    return results


def logged(place: Place, name: str, command: list[str], timeout: float, environment: dict[str, str] | None = None) -> int:
    """Runs a command with its output in a file, and gives its exit code; 124 when it ran past its time."""
    path = place.out / f"{name}.log"
    print(f"$ {' '.join(command)} > {path}", flush=True)
    with path.open("w") as log:
        try:
            return subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=timeout, env=environment or place.environment(), check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return 124


def last_line(place: Place, name: str, holding: str) -> str:
    """The last line of a log that holds these words, or its very last one."""
    lines = (place.out / f"{name}.log").read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if holding in line), lines[-1].strip() if lines else "no output")
