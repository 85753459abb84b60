"""Offline peers from the side of the run: each lives in a process of its own, idle while others are measured.

Comes in: an engine's name, texts. Goes out: the time and CPU that the engine took, as it says itself. See engines.py
for what is timed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from . import proc
from .engines import ENGINES
from .load import Window
from .prepare import Folders
from .reference import LEAST_COSINE, Probe, least_cosine

REPOSITORY = Path(__file__).resolve().parents[2]


class Missing(Exception):
    """The peer cannot run here; the message says why."""


class Offline:
    """One engine in its process. Use it in a `with`: it ends with the block."""

    def __init__(self, engine: str, folders: Folders, threads: int) -> None:
        self.name = f"{engine} (offline)"
        self.precision = ENGINES[engine][2]
        command = [sys.executable, "-m", "benches.peers.engines", engine, str(folders.onnx), str(threads)]
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=REPOSITORY
        )
        first = self._read()
        if "missing" in first:
            self.__exit__()
            raise Missing(first["missing"])
        self.version = first["ready"]
        self.pid = self._process.pid

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            raise Missing(f"it ended with {code}: {' '.join(self._log.read().splitlines()[-1:])}")
        return json.loads(line)

    def _ask(self, order: dict) -> dict:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._read()

    def cosine(self, probes: list[Probe]) -> float:
        """The least cosine to the reference over the probes. An f32 engine below the limit is an error; int8 is as good
        as it is, and the report says how good."""
        found = least_cosine(self._ask({"embed": [probe.text for probe in probes]})["embeddings"], probes)
        if self.precision == "f32" and found < LEAST_COSINE["f32"]:
            raise SystemExit(f"{self.name}: cosine {found:.6f} to the reference: other weights, or texts cut off")
        return found

    def window(self, texts: list[str], calls_of: int) -> Window:
        """Times all these texts, in calls of so many (0: all in one call)."""
        machine, own = proc.machine_busy_seconds(), proc.own_cpu_seconds()
        answer = self._ask({"time": texts, "calls_of": calls_of})
        return Window(
            seconds=answer["seconds"],
            cpu_seconds=answer["cpu_seconds"],
            generator_cpu_seconds=proc.own_cpu_seconds() - own,
            machine_busy_seconds=proc.machine_busy_seconds() - machine,
            latencies=answer["latencies"],
            completed=list(range(len(texts))),
        )

    def __enter__(self) -> "Offline":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()  # the end of its input ends it
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
