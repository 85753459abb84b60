"""Texts, what Linux says of processes, what flags say of servers, and what the report says of a run."""

import unittest

from benches.peers import proc, report
from benches.peers.reference import Probe, least_cosine
from benches.peers.rounds import Options, Round
from benches.peers.servers import Address, parse_address, parse_command
from benches.peers.summary import ratios, rows
from benches.peers.texts import Stream
from benches.peers.workloads import WORKLOADS, Workload, named

VOCABULARY = (["river", "lamp", "stone", "photosynthesis"], [0.3, 0.3, 0.3, 0.1])
SHORT = named(["short"])[0]


class Texts(unittest.TestCase):
    def test_the_same_round_gives_the_same_texts_in_whatever_order_they_are_asked(self) -> None:
        forwards, backwards = (Stream(SHORT, "s/1", VOCABULARY) for _ in range(2))
        last = backwards.text(19)
        self.assertEqual([forwards.text(number) for number in range(20)][19], last)
        self.assertEqual(forwards.texts(0, 20), backwards.texts(0, 20))

    def test_another_round_or_workload_gives_other_texts(self) -> None:
        texts = Stream(SHORT, "s/1", VOCABULARY).texts(0, 200)
        self.assertNotEqual(texts, Stream(SHORT, "s/2", VOCABULARY).texts(0, 200))
        self.assertNotEqual(texts, Stream(named(["one_short"])[0], "s/1", VOCABULARY).texts(0, 200))

    def test_lengths_are_those_of_the_workload(self) -> None:
        for workload in WORKLOADS:
            lengths = [len(text.split()) for text in Stream(workload, "s", VOCABULARY).texts(0, 300)]
            self.assertGreaterEqual(min(lengths), workload.words_min)
            self.assertLessEqual(max(lengths), workload.words_max)

    def test_an_unknown_workload_is_named(self) -> None:
        with self.assertRaisesRegex(SystemExit, "nonsense"):
            named(["short", "nonsense"])


class Processes(unittest.TestCase):
    def test_a_name_with_brackets_and_spaces_is_no_field(self) -> None:
        line = "42 (a) b) (c) S 7 42 42 0 -1 4194560 100 200 3 4 50 60 5 6 20 0 1 0 100 1000 10 1 1"
        self.assertEqual(proc.parse_stat(line), proc.Stat(parent=7, cpu_ticks=50 + 60 + 5 + 6))

    def test_busy_is_all_but_idle_and_waiting_for_disks(self) -> None:
        text = "cpu  10 20 30 4000 500 6 7 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"
        self.assertEqual(proc.parse_machine_ticks(text), 10 + 20 + 30 + 6 + 7 + 8)

    def test_peak_memory_is_in_bytes(self) -> None:
        self.assertEqual(proc.parse_peak_rss("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t  2048 kB\n"), 2048 * 1024)
        self.assertEqual(proc.parse_peak_rss("Name:\tkthreadd\n"), 0)

    def test_a_tree_holds_children_of_children_and_nobody_else(self) -> None:
        parents = {1: 0, 5: 1, 6: 5, 7: 6, 8: 1}
        stats = {pid: proc.Stat(parent, 0) for pid, parent in parents.items()}
        self.assertEqual(sorted(proc.tree(5, stats)), [5, 6, 7])
        self.assertEqual(proc.tree(99, stats), [])


class Flags(unittest.TestCase):
    def test_addresses(self) -> None:
        for text, expected in (
            ("a=http://127.0.0.1:3000", Address("a", "127.0.0.1", 3000)),
            ("a=http://host:80/,4711", Address("a", "host", 80, 4711)),
            ("a=http://host:1,api=embed,5,model=m", Address("a", "host", 1, 5, "embed", "m")),
        ):
            self.assertEqual(parse_address(text), expected)
        for wrong in (
            "http://host:1",
            "a=host:1",
            "a=https://host:1",
            "a=http://h:1/v1",
            "a=http://h:1,api=x",
            "a=http://h:1,x",
        ):
            with self.assertRaises(ValueError, msg=wrong):
                parse_address(wrong)

    def test_commands_need_a_port_to_listen_on(self) -> None:
        self.assertEqual(parse_command("a=x --port {port} 'b c'").words, ("x", "--port", "{port}", "b c"))
        for wrong in ("a=x --port 80", "x {port}", "a="):
            with self.assertRaises(ValueError, msg=wrong):
                parse_command(wrong)


class Probes(unittest.TestCase):
    def test_a_wrong_count_or_dimension_is_an_error_and_nan_is_no_match(self) -> None:
        probes = [Probe("a", (1.0, 0.0)), Probe("b", (0.0, 1.0))]
        self.assertAlmostEqual(least_cosine([[2.0, 0.0], [0.0, 3.0]], probes), 1)
        self.assertEqual(least_cosine([[float("nan"), 0.0], [0.0, 3.0]], probes), -1)
        for wrong in ([[1.0, 0.0]], [[1.0, 0.0], [1.0]]):
            with self.assertRaises(ValueError):
                least_cosine(wrong, probes)


def taken(workload: Workload, contestant: str, number: int, inputs: int, p50_ms: float, **changes) -> Round:
    values = {
        "seconds": 2.0, "tokens": inputs * 10, "cpu_seconds": 4.0, "generator_cpu_seconds": 0.1, "p99_ms": 9.0,
        "peak_rss_bytes": 1, "least_cosine": 1.0, "errors": {}, "built_late": 0, "busy_cores_before": 0.0,
        "waited_seconds_before": 0.0, "load_average_before": 0.0, "others_cores": 0.0, "is_quiet": True, "position": 0,
        "latencies": [p50_ms / 1e3],
    }  # fmt: skip
    return Round(workload.name, contestant, number, inputs=inputs, p50_ms=p50_ms, **(values | changes))


class Report(unittest.TestCase):
    def run_of(self, rounds: list[Round], workload: Workload) -> str:
        options = Options(rounds=2, seconds=2.0, quiet_cores=0.15, quiet_patience_seconds=1.0, seed="s")
        run = report.Run("2026-01-01", "command", {"cores": "2"}, options, [workload], rounds=rounds)
        return report.to_markdown(run, rows(rounds), ratios(rounds, [workload], ["ours"]), None)

    def test_ours_is_divided_by_each_peer_round_by_round(self) -> None:
        rounds = [
            taken(SHORT, "ours", 0, 100, 1.0),
            taken(SHORT, "peer", 0, 50, 2.0),
            taken(SHORT, "ours", 1, 300, 1.0),
            taken(SHORT, "peer", 1, 100, 2.0),
        ]
        (ratio,) = ratios(rounds, [SHORT], ["ours"])
        self.assertEqual((ratio.peer, ratio.ratio.median, ratio.ratio.least, ratio.ratio.greatest), ("peer", 2.5, 2, 3))
        self.assertEqual(ratio.per_cpu and ratio.per_cpu.median, 2.5)

    def test_a_single_client_is_compared_by_time_and_more_is_better(self) -> None:
        workload = named(["one_short"])[0]
        rounds = [taken(workload, "ours", 0, 100, 1.0), taken(workload, "peer", 0, 100, 4.0)]
        (ratio,) = ratios(rounds, [workload], ["ours"])
        self.assertEqual((ratio.by, ratio.ratio.median), ("p50", 4.0))

    def test_noise_and_errors_stand_at_the_top(self) -> None:
        clean = [taken(SHORT, "ours", 0, 100, 1.0)]
        self.assertIn("Valid: the machine was quiet in all 1 rounds", self.run_of(clean, SHORT))
        noisy = self.run_of([taken(SHORT, "ours", 0, 100, 1.0, is_quiet=False)], SHORT)
        self.assertIn("**NOT VALID FIGURES**", noisy)
        self.assertIn("1 of 1 rounds", noisy)
        failed = self.run_of([taken(SHORT, "ours", 0, 100, 1.0, errors={"status 429": 3})], SHORT)
        self.assertIn("**NOT VALID FIGURES**: 3 requests failed", failed)
        self.assertIn("**NOT VALID FIGURES**: nothing was measured", self.run_of([], SHORT))

    def test_what_was_not_measured_is_a_dash_and_no_zero(self) -> None:
        text = self.run_of([taken(SHORT, "ours", 0, 100, 1.0, cpu_seconds=None, peak_rss_bytes=None)], SHORT)
        self.assertIn("| ours | 50.0 | – | 1.00 | 1.00 (of 1) | – | 0 |", text)

    def test_a_command_is_kept_without_the_folders_of_its_machine(self) -> None:
        for command, kept in (
            ("run --ours-exe /home/me/target/release/neurogrid", "run --ours-exe neurogrid"),
            ("run --out target/trial", "run --out target/trial"),
            ("--server a=http://127.0.0.1:3000,5", "--server a=http://127.0.0.1:3000,5"),
            ("--start 'a=/opt/x/server --model {onnx}'", "--start 'a=server --model {onnx}'"),
        ):
            self.assertEqual(report.without_folders(command), kept)


if __name__ == "__main__":
    unittest.main()
