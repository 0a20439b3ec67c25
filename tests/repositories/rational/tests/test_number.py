import pytest
from rational import Rational, gcd, lcm


@pytest.mark.parametrize(("a", "b", "expected"), [(12, 18, 6), (7, 5, 1), (0, 4, 4), (-8, 12, 4)])
def test_gcd(a, b, expected):
    assert gcd(a, b) == expected


def test_lcm():
    assert lcm(4, 6) == 12
    assert lcm(-3, 5) == 15
    assert lcm(0, 5) == 0


def test_lowest_terms():
    assert (Rational(6, -8).p, Rational(6, -8).q) == (-3, 4)


def test_zero_denominator():
    with pytest.raises(ZeroDivisionError):
        Rational(1, 0)


def test_sum_and_difference():
    assert Rational(1, 2) + Rational(1, 3) == Rational(5, 6)
    assert Rational(1, 2) - Rational(1, 3) == Rational(1, 6)


def test_product_and_quotient():
    assert Rational(2, 3) * Rational(9, 4) == Rational(3, 2)
    assert Rational(2, 3) / Rational(4, 9) == Rational(3, 2)


def test_order():
    assert sorted([Rational(1, 2), Rational(-1, 3), Rational(2, 5)]) == [
        Rational(-1, 3),
        Rational(2, 5),
        Rational(1, 2),
    ]


def test_power():
    assert Rational(2, 3).power(3) == Rational(8, 27)
    assert Rational(2, 3).power(-2) == Rational(9, 4)
    assert Rational(5).power(0) == Rational(1)


@pytest.mark.parametrize(("text", "p", "q"), [("3", 3, 1), ("-3/4", -3, 4), ("1.25", 5, 4), ("-0.5", -1, 2)])
def test_parse(text, p, q):
    assert Rational.parse(text) == Rational(p, q)


def test_repr():
    assert repr(Rational(4, 2)) == "2"
    assert repr(-Rational(3, 9)) == "-1/3"


def test_hash():
    assert len({Rational(1, 2), Rational(2, 4), Rational(1, 3)}) == 2
