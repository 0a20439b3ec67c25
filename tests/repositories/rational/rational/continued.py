"""Continued fractions."""

from .number import Rational


def expand(value):
    """The terms of a rational number's continued fraction."""
    terms = []
    while True:
        whole = value.floor()
        terms.append(whole)
        rest = value - Rational(whole)
        if rest == Rational(0):
            return terms
        value = Rational(1) / rest


def convergents(terms):
    """The fractions that the first terms give, one for each term."""
    found = []
    p_before, p = 1, terms[0]
    q_before, q = 0, 1
    found.append(Rational(p, q))
    for term in terms[1:]:
        p_before, p = p, term * p + p_before
        q_before, q = q, term * q + q_before
        found.append(Rational(p, q))
    return found
