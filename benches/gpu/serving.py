"""Through HTTP: a worker beside a server of the same kind around sentence-transformers, loaded by `neurogrid bench` alike.

Comes in: a folder of weights. Goes out: requests and tokens a second with 256 callers and texts of mixed lengths, and the median of one
caller with 128 tokens.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from .encoders import SHAPES, make
from .stages import NotMeasured, Place

READY_SECONDS = 120
# (name, words of `neurogrid bench embeddings`). The words of its texts are not in the made-up vocabulary, which costs nobody less.
LOADS = [
    ("256 callers, 16 to 300 tokens", ["--concurrency", "256", "--prompt-tokens", "16-300", "--duration", "20s", "--warmup", "5s"]),
    ("1 caller, 128 tokens", ["--concurrency", "1", "--prompt-tokens", "128", "--requests", "500", "--warmup", "2s"]),
]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str, method: str = "GET", body: dict | None = None, timeout: float = 120) -> tuple[int, dict]:
    """Status and JSON of a request; status 0 where nobody listens."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, json.loads(response.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0, {}


@contextlib.contextmanager
def running(place: Place, name: str, command: list[str], ready: str) -> Iterator[subprocess.Popen]:
    """A server for the time of the block, once this address answers with 200."""
    with (place.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=place.environment(), start_new_session=True)
        try:
            give_up = time.monotonic() + READY_SECONDS
            while answers(ready, timeout=5)[0] != 200:
                if process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"{name} does not get ready; see {name}.log")
                time.sleep(0.1)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextlib.contextmanager
def worker(place: Place, folder: Path, *words: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Our worker on the device; its address and its process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(place.program("neurogrid")), "worker", "--bind", f"127.0.0.1:{port}", "--device", place.device,
               "--model-folder", str(folder), "--cache-dir", str(place.out / "cache"), "--data-dir", str(place.out / "state"),
               "--backend", "candle", *words]
    with running(place, "worker", command, f"{url}/health/ready") as process:
        yield url, process


def model_of(url: str, folder: Path) -> str:
    """The name under which a worker serves a folder."""
    listed = [model["id"] for model in answers(f"{url}/v1/models")[1]["data"]]
    found = [name for name in listed if folder.name.lower() in name.lower()]
    if not found:
        raise RuntimeError(f"{folder.name} is not among {listed}")
    return found[0]


def load(place: Place, url: str, model: str, name: str, words: list[str]) -> dict:
    """One load on one server, as `neurogrid bench` reports it."""
    path = place.out / f"{name}.json"
    command = [str(place.program("neurogrid")), "bench", "embeddings", "--url", url, "--model", model, "--save", str(path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=place.environment(), check=False)
    if done.returncode != 0:
        raise RuntimeError(f"neurogrid bench: {done.stderr.strip().splitlines()[-1:]}")
    stage = json.loads(path.read_text())["stages"][0]
    path.unlink()
    return {key: stage[key] for key in ("requests", "requests_per_s", "prompt_tokens_per_s", "e2e_ms")}


def http(place: Place, results: dict) -> None:
    """Both servers, one after the other, each with all loads."""
    folder = make(place, SHAPES[1])
    results["loads"] = {name: {} for name, _ in LOADS}
    with worker(place, folder) as (url, _):
        model = model_of(url, folder)
        for name, words in LOADS:
            results["loads"][name]["ours"] = load(place, url, model, "load-ours", words)
        results["devices"] = answers(f"{url}/status")[1].get("devices")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Started by its path, for the package's folder is not where this runs.
    peer = [sys.executable, str(Path(__file__).with_name("rival_server.py")), str(folder), place.device, str(port)]
    try:
        import aiohttp  # noqa: F401
        import sentence_transformers  # noqa: F401
    except ImportError as missing:
        raise NotMeasured(f"ours is measured, sentence-transformers is not: no {missing.name} in this Python") from missing
    with running(place, "rival", peer, f"{url}/v1/models"):
        for name, words in LOADS:
            results["loads"][name]["sentence-transformers"] = load(place, url, "rival", "load-rival", words)
