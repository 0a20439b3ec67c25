"""A fraction in lowest terms."""


def gcd(a, b):
    """Greatest common divisor, by Euclid."""
    a, b = abs(a), abs(b)
    while b:
        a, b = b, a % b
    return a


def lcm(a, b):
    """Least common multiple; 0 if either is 0."""
    if a == 0 or b == 0:
        return 0
    return abs(a * b) // gcd(a, b)


class Rational:
    """A number p / q with q > 0 and no common divisor."""

    def __init__(self, p, q=1):
        if q == 0:
            raise ZeroDivisionError("denominator is zero")
        if q < 0:
            p, q = -p, -q
        divisor = gcd(p, q)
        self.p = p // divisor
        self.q = q // divisor

    @classmethod
    def parse(cls, text):
        """Read "3", "-3/4" or "1.25"."""
        if "/" in text:
            p, q = text.split("/", 1)
            return cls(int(p), int(q))
        whole, _, decimals = text.partition(".")
        scale = 10 ** len(decimals)
        sign = -1 if whole.startswith("-") else 1
        return cls(sign * (abs(int(whole)) * scale + int(decimals or 0)), scale)

    def __add__(self, other):
        return Rational(self.p * other.q + other.p * self.q, self.q * other.q)

    def __sub__(self, other):
        return Rational(self.p * other.q - other.p * self.q, self.q * other.q)

    def __mul__(self, other):
        return Rational(self.p * other.p, self.q * other.q)

    def __truediv__(self, other):
        return Rational(self.p * other.q, self.q * other.p)

    def __neg__(self):
        return Rational(-self.p, self.q)

    def __eq__(self, other):
        return isinstance(other, Rational) and self.p == other.p and self.q == other.q

    def __lt__(self, other):
        return self.p * other.q < other.p * self.q

    def __hash__(self):
        return hash((self.p, self.q))

    def __repr__(self):
        return f"{self.p}" if self.q == 1 else f"{self.p}/{self.q}"

    def power(self, exponent):
        """Raise to a whole power, negative ones included."""
        if exponent < 0:
            return Rational(self.q, self.p).power(-exponent)
        result, base = Rational(1), self
        while exponent:
            if exponent & 1:
                result = result * base
            base = base * base
            exponent >>= 1
        return result

    def floor(self):
        """Largest whole number that is not above."""
        return self.p // self.q
