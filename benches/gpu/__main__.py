"""`python3 -m gpu` in a pack, `python -m benches.gpu` in the repository: stages come in, JSON files and a report go out."""

import argparse
import json
from pathlib import Path

from .correct import sanitizer, tests
from .encoders import encoders
from .memory import memory
from .report import report
from .serving import http
from .stages import Place, gpu, run_stage

STAGES = {"tests": tests, "sanitizer": sanitizer, "encoders": encoders, "http": http, "memory": memory}


def main() -> int:
    """Runs what was asked for. 0 also where there is no GPU: then nothing was measured, and nothing is wrong."""
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    parser.add_argument("--pack", type=Path, default=Path(__file__).resolve().parents[1], help="what `cargo xtask gpu --pack` has made")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="where results go (default: %(default)s)")
    parser.add_argument("--only", default=",".join(STAGES), help="stages, separated by commas (default: %(default)s)")
    parser.add_argument("--device", default="cuda:0", help="cuda:N; cpu only tries out whether the stages run")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := [name for name in wanted if name not in STAGES]:
        parser.error(f"{', '.join(unknown)}: there is no such stage; there are {', '.join(STAGES)}")
    found = gpu()
    if found is None and options.device != "cpu":
        print("not measured: no GPU")
        return 0
    place = Place(options.pack.resolve(), options.out.resolve(), options.device)
    for name in wanted:
        run_stage(place, name, STAGES[name])
    # What earlier runs left in the folder belongs to the report too.
    kept = {name: place.out / f"{name}.json" for name in STAGES}
    stages = {name: json.loads(path.read_text()) for name, path in kept.items() if path.is_file()}
    packed = place.pack / "pack.json"
    head = {"gpu": found, "device": options.device, **(json.loads(packed.read_text()) if packed.is_file() else {})}
    (place.out / "report.md").write_text(report(stages, head))
    print((place.out / "report.md").read_text())
    return int(any(results["outcome"].startswith("FAILED") for results in stages.values()))


if __name__ == "__main__":
    raise SystemExit(main())
