"""The report of results that are known, and of results that are missing."""

import unittest

from ..encoders import SHAPES
from ..report import TARGETS, http_median, http_ratio, least_ratio, least_share, lost_tasks, passed, report
from ..stages import median


def row(model: str, sequences: int, share: float, **milliseconds: float) -> dict:
    """A row of the encoders' stage."""
    names = {"ours": "ours", "st": "sentence-transformers", "compiled": "torch-compiled"}
    seconds = {names[name]: {"median_s": value / 1e3} for name, value in milliseconds.items()}
    return {"model": model, "sequences": sequences, "tokens": 128, "seconds": seconds, "share_of_matrix_rate": share}


class Report(unittest.TestCase):
    """Figures are taken from the rows that the targets speak of."""

    def test_ratios_are_the_worst_of_the_batches_that_are_large_enough(self) -> None:
        rows = [row("BERT-base", 1, 0.01, ours=1, st=1), row("BERT-base", 32, 0.6, ours=2, st=4), row("MiniLM-L6", 128, 0.3, ours=1, st=3)]
        self.assertEqual(least_ratio({"batches": rows}, "sentence-transformers"), 2.0)
        self.assertEqual(least_share({"batches": rows}), 0.6)
        self.assertIsNone(least_ratio({"batches": rows}, "torch-compiled"))

    def test_what_was_not_measured_is_said_and_never_met(self) -> None:
        text = report({}, {"gpu": None})
        self.assertEqual(text.count("not measured"), len(TARGETS))
        self.assertNotIn("met |", text.replace("**not met**", ""))

    def test_every_target_is_met_or_not_by_its_figure(self) -> None:
        load = {"requests_per_s": 300.0, "e2e_ms": {"p50": 1.5}}
        slow = {"requests_per_s": 100.0, "e2e_ms": {"p50": 9.0}}
        http = {"loads": {"256 callers": {"ours": load, "sentence-transformers": slow}, "1 caller": {"ours": load}}}
        self.assertEqual((http_ratio(http), http_median(http)), (3.0, 1.5))
        self.assertIsNone(http_ratio({"loads": {"256 callers": {"ours": load}}}))
        memory = {"without_room": {"tasks": 100, "answered": 99}, "cycles": {"residue_share": 0.01}}
        self.assertEqual(lost_tasks(memory), 1.0)
        self.assertEqual(passed({"runs": {"a": {"passed": True}, "b": {"passed": False}}}), False)
        stages = {"http": http, "memory": memory}
        for results in stages.values():
            results |= {"outcome": "done", "seconds": 1}
        text = report(stages, {"gpu": "Card"})
        self.assertIn("| 3.00 | met |", text)
        self.assertIn("| 1.00 | **not met** |", text)

    def test_operations_are_counted_as_in_the_paper(self) -> None:
        # BERT-base has 85 million weights in its layers: two operations for each and token, and 4 · tokens · hidden a layer.
        self.assertAlmostEqual(SHAPES[1].flops(1, 1) / 2 / 84.9e6, 1.0, places=2)
        self.assertEqual(SHAPES[1].flops(2, 128), 2 * SHAPES[1].flops(1, 128))
        self.assertEqual(median([3.0, 1.0, 2.0]), 2.0)


if __name__ == "__main__":
    unittest.main()
