"""Percentiles, medians, pairing and the order of rounds."""

import math
import unittest

from benches.peers.figures import Spread, cosine, paired_ratios, percentile, rotation


class Percentiles(unittest.TestCase):
    def test_the_nearest_rank_is_a_value_that_was_there(self) -> None:
        hundred = list(range(100, 0, -1))
        for per_cent, expected in ((50, 50), (99, 99), (100, 100), (1, 1), (0, 1)):
            self.assertEqual(percentile(hundred, per_cent), expected)
        self.assertEqual(percentile([3.0, 1.0, 2.0], 50), 2.0)
        self.assertEqual(percentile([1.0, 2.0], 50), 1.0)
        self.assertEqual(percentile([7.0], 99), 7.0)

    def test_no_values_are_no_zero(self) -> None:
        with self.assertRaises(ValueError):
            percentile([], 50)
        self.assertIsNone(Spread.of([]))

    def test_a_spread_has_the_least_and_the_greatest(self) -> None:
        self.assertEqual(Spread.of([3.0, 1.0, 9.0]), Spread(3.0, 1.0, 9.0, 3))


class Pairs(unittest.TestCase):
    def test_only_rounds_that_both_have_are_divided(self) -> None:
        self.assertEqual(paired_ratios({0: 2.0, 1: 6.0, 3: 8.0}, {1: 3.0, 2: 5.0, 3: 16.0}), [2.0, 0.5])
        self.assertEqual(paired_ratios({0: 2.0}, {1: 1.0}), [])
        self.assertEqual(paired_ratios({0: 2.0}, {0: 0.0}), [])


class Orders(unittest.TestCase):
    def test_each_is_first_as_often_as_any_other(self) -> None:
        names = ["a", "b", "c", "d"]
        orders = [rotation(names, round_) for round_ in range(8)]
        for order in orders:
            self.assertEqual(sorted(order), names)
        firsts = [order[0] for order in orders]
        self.assertEqual({name: firsts.count(name) for name in names}, dict.fromkeys(names, 2))

    def test_nobody_always_follows_the_same_neighbour(self) -> None:
        orders = [rotation(["a", "b", "c"], round_) for round_ in range(6)]
        followers = {
            after for order in orders for before, after in zip(order, order[1:], strict=False) if before == "a"
        }
        self.assertEqual(followers, {"b", "c"})

    def test_one_and_none(self) -> None:
        self.assertEqual(rotation(["a"], 5), ["a"])
        self.assertEqual(rotation([], 5), [])


class Cosines(unittest.TestCase):
    def test_known_angles(self) -> None:
        self.assertAlmostEqual(cosine([1, 0], [1, 1]), math.sqrt(0.5))
        self.assertAlmostEqual(cosine([1, 2, 3], [-2, -4, -6]), -1)
        self.assertTrue(math.isnan(cosine([0, 0], [1, 1])))
        with self.assertRaises(ValueError):
            cosine([1], [1, 2])


if __name__ == "__main__":
    unittest.main()
