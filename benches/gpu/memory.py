"""Memory: what loading and unloading leaves behind, and whether work goes on when the device has no room.

Comes in: a folder of weights. Goes out: device memory and the worker's own over 200 cycles, and what became of the tasks while another
process held nearly all of the device.
"""

import concurrent.futures
import subprocess
import sys

from .encoders import SHAPES, make
from .serving import answers, model_of, worker
from .stages import NotMeasured, Place, memory_used_mib

CYCLES = 200
TASKS = 100
# Leaves so little that a batch of long texts does not fit, and a text alone does.
LEFT_MIB = 700

HOLD = """
import sys, torch
torch.cuda.init()
free, _ = torch.cuda.mem_get_info()
held = torch.empty(max(free - (int(sys.argv[1]) << 20), 1 << 20), dtype=torch.uint8, device="cuda:0")
print("held", flush=True)
sys.stdin.read()
"""


def resident_mib(pid: int) -> int:
    """Main memory that a process holds."""
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) >> 10
    raise RuntimeError(f"process {pid} is gone")


def cycles(url: str, model: str, pid: int, results: dict) -> None:
    """Loads and unloads; what is held is read after each unloading."""
    body = {"model": model, "input": ["w1 w2 w3"]}
    held, resident = [], []
    for cycle in range(CYCLES):
        status, answer = answers(f"{url}/v1/embeddings", "POST", body)
        if status != 200:
            raise RuntimeError(f"cycle {cycle}: {status} {answer}")
        if cycle == 0:
            loaded = memory_used_mib()
        status, answer = answers(f"{url}/api/models/{model}", "DELETE")
        if status != 204:
            raise RuntimeError(f"unloading in cycle {cycle}: {status} {answer}")
        held.append(memory_used_mib())
        resident.append(resident_mib(pid))
    results["cycles"] = {
        "count": CYCLES,
        "device_mib_loaded": loaded,
        "device_mib_after_the_first": held[0],
        "device_mib_after_the_last": held[-1],
        "residue_share": (held[-1] - held[0]) / max(loaded - held[0], 1),
        # The first ones fill caches and pools.
        "host_mib_after_20": resident[min(19, len(resident) - 1)],
        "host_mib_after_the_last": resident[-1],
    }


def without_room(url: str, model: str, pid: int, results: dict) -> None:
    """Batches that do not fit while another process holds the device."""
    torch = subprocess.Popen([sys.executable, "-c", HOLD, str(LEFT_MIB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if torch.stdout.readline().strip() != "held":
            raise NotMeasured("PyTorch cannot take the device's memory")
        texts = [" ".join(f"w{word}" for word in range(500))] * 64
        def ask(_: int) -> int:
            return answers(f"{url}/v1/embeddings", "POST", {"model": model, "input": texts}, timeout=300)[0]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(ask, range(TASKS)))
    finally:
        torch.stdin.close()
        torch.wait(60)
        torch.stdout.close()
    failed_batches = answers(f"{url}/api/metrics")[1].get("batches_failed")
    results["without_room"] = {
        "tasks": TASKS,
        "answered": statuses.count(200),
        "other_statuses": sorted(set(statuses) - {200}),
        "batches_failed": failed_batches,
        "same_process": resident_mib(pid) > 0,
        "ready_after": answers(f"{url}/health/ready")[0] == 200,
    }


def memory(place: Place, results: dict) -> None:
    """Both."""
    if not place.device.startswith("cuda"):
        raise NotMeasured("device memory is a GPU's")
    folder = make(place, SHAPES[1])
    with worker(place, folder) as (url, process):
        model = model_of(url, folder)
        cycles(url, model, process.pid, results)
        answers(f"{url}/v1/embeddings", "POST", {"model": model, "input": ["w1"]})
        without_room(url, model, process.pid, results)
