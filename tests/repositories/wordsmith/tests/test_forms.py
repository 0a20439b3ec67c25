import unittest

from wordsmith.forms import caesar, from_roman, run_lengths, slug, to_roman


class Slugs(unittest.TestCase):
    def test_words(self):
        self.assertEqual(slug("Hello,  World 2!"), "hello-world-2")

    def test_limit(self):
        self.assertEqual(slug("one two three", limit=8), "one-two")
        self.assertEqual(slug("incomprehensible", limit=4), "inco")


class Numerals(unittest.TestCase):
    def test_to_roman(self):
        self.assertEqual([to_roman(n) for n in (4, 9, 14, 1994, 3999)], ["IV", "IX", "XIV", "MCMXCIV", "MMMCMXCIX"])

    def test_round_trip(self):
        for number in range(1, 400):
            self.assertEqual(from_roman(to_roman(number)), number)

    def test_range(self):
        for number in (0, 4000):
            with self.assertRaises(ValueError):
                to_roman(number)


class Others(unittest.TestCase):
    def test_run_lengths(self):
        self.assertEqual(run_lengths("aabccc"), [("a", 2), ("b", 1), ("c", 3)])

    def test_caesar(self):
        self.assertEqual(caesar("Xyz, abc!", 3), "Abc, def!")
        self.assertEqual(caesar(caesar("Round Trip", 11), -11), "Round Trip")
