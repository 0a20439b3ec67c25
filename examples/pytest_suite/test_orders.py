"""Tests that record what they run, into `orders.cwmtraces`."""

from orders import total


def test_total(recorded):
    with recorded():
        assert total([5, 10]) == 15


def test_total_with_discount(recorded):
    with recorded():
        assert total([50, 50], discount=20) == 80
