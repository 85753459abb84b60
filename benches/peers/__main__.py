"""Runs the comparison: `python -m benches.peers run --help`. Arguments come in; a folder of results goes out.

It wires the other modules together: prepares the weights, starts what is to be started, lets the rounds run workload by
workload and writes after each, so that a run that is cut short keeps what it has.
"""

import argparse
import datetime
import http.client
import json
import shlex
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from . import proc, report, rounds, summary, workloads
from .engines import ENGINES
from .offline import Missing, Offline
from .plot import draw
from .prepare import Folders, prepare
from .reference import Probe, Reference
from .rounds import Contestant, OfflineContestant, Options, ServerContestant
from .servers import Address, Command, Running, Server, connect, parse_address, parse_command, worker
from .texts import TokenCounter

REPOSITORY = Path(__file__).resolve().parents[2]
# A name of ours; everything else is a peer.
OURS, OURS_INT8 = "ours", "ours-int8"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.peers",
        description="Compares a worker with other embedding servers and libraries on the same texts and weights, in "
        "one interleaved run. benches/peers/README.md explains what is measured and how to read it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser(
        "prepare", help="make the two model folders that servers are started with, and say where"
    )
    running = commands.add_parser(
        "run", help="measure", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    for one in (preparing, running):
        one.add_argument("--model", type=Path, help="checkpoint folder (default: the installed all-MiniLM-L6-v2)")
        one.add_argument(
            "--work",
            type=Path,
            default=REPOSITORY / "target/peers",
            help="where the prepared folders go (default: %(default)s)",
        )
    who = running.add_argument_group("who is measured")
    who.add_argument(
        "--ours-exe", type=Path, metavar="FILE", help="the `neurogrid` executable; a worker is started with the weights"
    )
    who.add_argument("--ours", metavar="URL[,PID]", help="a worker that already runs, instead of --ours-exe")
    who.add_argument(
        "--ours-args", default="", metavar="WORDS", help="more words for `neurogrid worker`, quoted as one"
    )
    who.add_argument(
        "--ours-int8",
        metavar="MODEL",
        help="our int8 model: a folder for a second worker, or a model's name at the first",
    )
    who.add_argument(
        "--server", action="append", default=[], metavar="NAME=URL[,PID][,api=openai|embed][,model=NAME]",
        help="a server that already runs; with its process id its CPU time and memory are measured. May be repeated",
    )  # fmt: skip
    who.add_argument(
        "--start", action="append", default=[], metavar="NAME=COMMAND",
        help="a server to start; {port}, {weights} (folder without a graph) and {onnx} (folder with model.onnx) are "
        "filled in. Its start is timed. May be repeated",
    )  # fmt: skip
    who.add_argument(
        "--offline", default=",".join(ENGINES), metavar="LIST", help="offline peers, or `none` (default: %(default)s)"
    )
    how = running.add_argument_group("how")
    how.add_argument(
        "--workloads", metavar="LIST", default=",".join(one.name for one in workloads.WORKLOADS), help="(default: all)"
    )
    how.add_argument(
        "--rounds", type=int, default=7, help="rounds of each contestant and workload (default: %(default)s)"
    )
    how.add_argument("--seconds", type=float, default=6.0, help="length of a round (default: %(default)s)")
    how.add_argument(
        "--starts", type=int, default=5, help="starts that are timed for each started server (default: %(default)s)"
    )
    how.add_argument("--quiet-cores", type=float, default=0.15, help="others may use so much (default: %(default)s)")
    how.add_argument(
        "--quiet-patience", type=float, default=60.0, metavar="SECONDS",
        help="how long a round waits for a quiet machine before it runs anyway and is marked (default: %(default)s)",
    )  # fmt: skip
    how.add_argument("--threads", type=int, default=proc.cores(), help="threads of offline peers (default: all cores)")
    how.add_argument("--seed", default="peers", help="other seeds give other texts (default: %(default)s)")
    how.add_argument("--out", type=Path, help="folder of the results (default: benches/results/<date>-peers)")
    chosen = parser.parse_args()
    if chosen.command == "run" and chosen.ours and chosen.ours_exe:
        parser.error("--ours and --ours-exe are two ways to say the same: give one")
    return chosen


EXAMPLES = """examples, from the repository's root:
  python -m benches.peers run --ours-exe target/release/neurogrid
  python -m benches.peers run --ours-exe target/release/neurogrid --server other=http://127.0.0.1:3000,4711
  python -m benches.peers run --ours-exe target/release/neurogrid --workloads mixed,short --rounds 3 --out target/trial
"""


def main() -> None:
    # Ending the run ends what it started: SIGTERM unwinds like an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    chosen = arguments()
    folders = prepare(chosen.model, chosen.work)
    if chosen.command == "prepare":
        print(f"{folders.weights}\n{folders.onnx}")
        return
    Comparison(chosen, folders).run()


class Comparison:
    """One run of `run`: who takes part, then workload by workload."""

    def __init__(self, chosen: argparse.Namespace, folders: Folders) -> None:
        self.chosen, self.folders = chosen, folders
        self.workloads = workloads.named(chosen.workloads.split(","))
        today = datetime.date.today().isoformat()
        self.out = chosen.out or REPOSITORY / f"benches/results/{today}-peers"
        self.counter = TokenCounter(folders.weights)
        self.contestants: list[Contestant] = []
        try:
            self.commands, self.addresses = self._servers()
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
        options = Options(chosen.rounds, chosen.seconds, chosen.quiet_cores, chosen.quiet_patience, chosen.seed)
        command = report.without_folders(shlex.join(["python", "-m", "benches.peers", *sys.argv[1:]]))
        self.found = report.Run(today, command, report.machine(), options, self.workloads)
        print("embedding the probes in f64", flush=True)
        reference = Reference(folders.weights)
        self.probes = {workload.name: reference.probes(workload) for workload in self.workloads}

    def _servers(self) -> tuple[list[Command], list[Address]]:
        """What the flags say of servers: those to start and those that run."""
        chosen = self.chosen
        commands = [parse_command(text) for text in chosen.start]
        addresses = [parse_address(text) for text in chosen.server]
        if chosen.ours_exe:
            commands.insert(0, worker(OURS, chosen.ours_exe, "{weights}", chosen.ours_args))
        if chosen.ours:
            addresses.insert(0, parse_address(f"{OURS}={chosen.ours}"))
        if chosen.ours_int8 and Path(chosen.ours_int8).is_dir():
            if not chosen.ours_exe:
                raise ValueError(
                    "--ours-int8 with a folder needs --ours-exe to serve it; else give the name of a model"
                )
            folder = str(Path(chosen.ours_int8).resolve())
            commands.insert(1, worker(OURS_INT8, chosen.ours_exe, folder, chosen.ours_args, precision="int8"))
        names = [one.name for one in (*commands, *addresses)]
        if len(set(names)) != len(names):
            raise ValueError(f"two servers have one name: {', '.join(sorted(names))}")
        return commands, addresses

    def _any_probe(self) -> Probe:
        """A short text to find out whether and how a server embeds."""
        return min((probe for probes in self.probes.values() for probe in probes), key=lambda probe: len(probe.text))

    def run(self) -> None:
        with ExitStack() as stack:
            self._time_starts()
            self._gather(stack)
            if not self.contestants:
                raise SystemExit("error: nobody to measure; give --ours-exe, --ours, --server, --start or --offline")
            self.out.mkdir(parents=True, exist_ok=True)
            for workload in self.workloads:
                takers = [one for one in self.contestants if one.precision == workload.precision]
                if not takers:
                    self.found.left_out[workload.name] = f"no {workload.precision} contestant"
                    continue
                print(f"{workload.name}: {workload.describe()}", flush=True)
                taken, failures = rounds.run(
                    workload, takers, self.probes[workload.name], self.counter, self.found.options
                )
                self.found.rounds += taken
                self.found.failures += failures
                self._write()
        self._write()
        print(f"\n{(self.out / 'README.md').read_text()}\nwritten to {self.out}")

    def _time_starts(self) -> None:
        """Starts and ends each server that is ours to start, in turn, before anything else takes memory or time."""
        for number in range(self.chosen.starts):
            for command in self.commands:
                proc.wait_until_quiet(self.chosen.quiet_cores, self.chosen.quiet_patience)
                with Running(command, self.folders, self._any_probe()) as running:
                    start = running.start
                if start.ready_seconds is not None:
                    self.found.ready_seconds.setdefault(command.name, []).append(start.ready_seconds)
                self.found.first_answer_seconds.setdefault(command.name, []).append(start.first_answer_seconds)
                print(
                    f"start {number + 1}: {command.name}: first text embedded after {start.first_answer_seconds:.3f} s",
                    flush=True,
                )

    def _gather(self, stack: ExitStack) -> None:
        """Everybody who takes part, running and checked."""
        for command in self.commands:
            server = stack.enter_context(Running(command, self.folders, self._any_probe())).server
            self._add(server, report.without_folders(shlex.join(command.words)))
        for address in self.addresses:
            self._add(connect(address, self._any_probe()), "was running")
        wanted = self.chosen.ours_int8
        if wanted and not Path(wanted).is_dir():
            ours = next((one.server for one in self.contestants if one.name == OURS), None)
            if ours is None:
                raise SystemExit("error: --ours-int8 with a model's name needs --ours or --ours-exe")
            address = Address(OURS_INT8, ours.host, ours.port, ours.pid, ours.api, wanted)
            self._add(connect(address, self._any_probe(), "int8"), "the worker of `ours`")
        wanted = [] if self.chosen.offline == "none" else self.chosen.offline.split(",")
        for engine in wanted:
            if engine not in ENGINES:
                raise SystemExit(f"error: no offline peer is called {engine}; there are {', '.join(ENGINES)}")
            if any(one.precision == ENGINES[engine][2] for one in self.workloads):
                self._add_offline(engine, stack)

    def _add(self, server: Server, how: str) -> None:
        self.contestants.append(ServerContestant(server))
        model = f", model `{server.model}`" if server.model else ""
        pid = "" if server.pid is not None else "; no process id given: CPU time and memory are not known"
        self.found.contestants[server.name] = f"{server.api} API{model}{_version(server)}; {how}{pid}"

    def _add_offline(self, engine: str, stack: ExitStack) -> None:
        try:
            offline = stack.enter_context(Offline(engine, self.folders, self.chosen.threads))
        except Missing as reason:
            print(f"{engine} is left out: {reason}", flush=True)
            self.found.left_out[engine] = str(reason)
            return
        suited = next(one for one in self.workloads if one.precision == offline.precision)
        self.found.offline_cosine[offline.name] = offline.cosine(self.probes[suited.name])
        self.contestants.append(OfflineContestant(offline))
        self.found.contestants[offline.name] = (
            f"{offline.version}, {self.chosen.threads} threads, in a process of its own"
        )

    def _write(self) -> None:
        ours = [OURS, OURS_INT8]
        rows = summary.rows(self.found.rounds)
        ratios = summary.ratios(self.found.rounds, self.workloads, ours)
        try:
            draw(rows, self.workloads, ours, self.out / "plot.svg")
            plot = "plot.svg"
        except ImportError as error:
            print(f"no plot: {error}; see benches/peers/requirements.txt", flush=True)
            plot = None
        (self.out / "results.json").write_text(report.to_json(self.found, rows, ratios))
        (self.out / "README.md").write_text(report.to_markdown(self.found, rows, ratios, plot))


def _version(server: Server) -> str:
    """The version that a server's `/info` tells, where it has one."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    try:
        connection.request("GET", "/info")
        response = connection.getresponse()
        content = json.loads(response.read()) if response.status == 200 else {}
    except (OSError, http.client.HTTPException, ValueError):
        return ""
    finally:
        connection.close()
    return f", version {content['version']}" if isinstance(content, dict) and "version" in content else ""


if __name__ == "__main__":
    main()
