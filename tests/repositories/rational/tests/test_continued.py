from rational import Rational, convergents, expand


def test_expand():
    assert expand(Rational(415, 93)) == [4, 2, 6, 7]
    assert expand(Rational(-7, 2)) == [-4, 2]


def test_convergents():
    assert convergents([3, 7, 15, 1]) == [Rational(3), Rational(22, 7), Rational(333, 106), Rational(355, 113)]


def test_last_convergent_is_the_number():
    value = Rational(649, 200)
    assert convergents(expand(value))[-1] == value
