"""Classic algorithms to record, each with a generator of small inputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from .generator import GeneratedProgram


class ClassicAlgorithm(NamedTuple):
    """An algorithm and a generator of its inputs."""

    code: str
    """Source text of one function."""
    arguments: Callable[[random.Random], tuple[object, ...]]
    """Function that draws the arguments of a call."""

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.code[len("def ") : self.code.index("(")]

    def program(self, seed: int) -> GeneratedProgram:
        """Return the algorithm called with the inputs of a seed."""
        arguments = self.arguments(random.Random(seed))
        return GeneratedProgram(self.code, f"{self.name}({', '.join(map(repr, arguments))})")


def _integer(low: int, high: int) -> Callable[[random.Random], tuple[object, ...]]:
    return lambda rng: (rng.randrange(low, high + 1),)


def _pair(low: int, high: int) -> Callable[[random.Random], tuple[object, ...]]:
    return lambda rng: (rng.randrange(low, high + 1), rng.randrange(low, high + 1))


def _integers(rng: random.Random, low: int = 2, high: int = 4) -> list[int]:
    return [rng.randrange(10) for _ in range(rng.randrange(low, high + 1))]


def _list(rng: random.Random) -> tuple[object, ...]:
    return (_integers(rng),)


def _lists(rng: random.Random) -> tuple[object, ...]:
    return sorted(_integers(rng, 1, 3)), sorted(_integers(rng, 1, 3))


def _list_and_item(rng: random.Random) -> tuple[object, ...]:
    return _integers(rng), rng.randrange(10)


def _sorted_and_item(rng: random.Random) -> tuple[object, ...]:
    items = sorted(rng.sample(range(10), rng.randrange(2, 6)))
    return items, rng.choice([*items, rng.randrange(10)])


def _text(letters: str, low: int = 2, high: int = 5) -> Callable[[random.Random], tuple[object, ...]]:
    return lambda rng: ("".join(rng.choice(letters) for _ in range(rng.randrange(low, high + 1))),)


def _palindrome(rng: random.Random) -> tuple[object, ...]:
    half = "".join(rng.choice("ABC") for _ in range(rng.randrange(1, 4)))
    return (half + half[::-1] if rng.random() < 0.5 else half + rng.choice("ABC"),)


def _two_texts(rng: random.Random) -> tuple[object, ...]:
    first = "".join(rng.choice("ABC") for _ in range(rng.randrange(1, 4)))
    return first, "".join(rng.sample(first, len(first))) if rng.random() < 0.5 else first[:-1] + rng.choice("ABC")


def _text_and_letter(rng: random.Random) -> tuple[object, ...]:
    return *_text("ABC")(rng), rng.choice("ABC")


def _matrix(rng: random.Random) -> tuple[object, ...]:
    return ([[rng.randrange(10), rng.randrange(10)] for _ in range(2)],)


ALGORITHMS: tuple[ClassicAlgorithm, ...] = (
    ClassicAlgorithm(
        """def gcd(a, b):
    while b:
        a, b = b, a % b
    return a
""",
        _pair(1, 30),
    ),
    ClassicAlgorithm(
        """def factorial(n):
    if n < 2:
        return 1
    return n * factorial(n - 1)
""",
        _integer(0, 5),
    ),
    ClassicAlgorithm(
        """def fibonacci(n):
    a, b = 0, 1
    for i in range(n):
        a, b = b, a + b
    return a
""",
        _integer(1, 7),
    ),
    ClassicAlgorithm(
        """def power(base, exponent):
    result = 1
    while exponent:
        if exponent % 2:
            result *= base
        base *= base
        exponent //= 2
    return result
""",
        lambda rng: (rng.randrange(1, 4), rng.randrange(6)),
    ),
    ClassicAlgorithm(
        """def collatz(n):
    steps = 0
    while n != 1:
        if n % 2:
            n = 3 * n + 1
        else:
            n //= 2
        steps += 1
    return steps
""",
        lambda rng: (rng.choice([1, 2, 3, 4, 5, 8, 10, 16]),),
    ),
    ClassicAlgorithm(
        """def is_prime(n):
    if n < 2:
        return False
    d = 2
    while d * d <= n:
        if n % d == 0:
            return False
        d += 1
    return True
""",
        _integer(0, 30),
    ),
    ClassicAlgorithm(
        """def primes_below(n):
    primes = []
    for k in range(2, n):
        for p in primes:
            if k % p == 0:
                break
        else:
            primes.append(k)
    return primes
""",
        _integer(3, 5),
    ),
    ClassicAlgorithm(
        """def sieve(n):
    prime = [False, False] + [True] * (n - 2)
    for k in range(2, n):
        if prime[k]:
            for multiple in range(2 * k, n, k):
                prime[multiple] = False
    return prime
""",
        _integer(4, 7),
    ),
    ClassicAlgorithm(
        """def factors(n):
    found = []
    d = 2
    while n > 1:
        if n % d == 0:
            found.append(d)
            n //= d
        else:
            d += 1
    return found
""",
        lambda rng: (rng.choice([2, 3, 4, 6, 8, 9, 10, 12]),),
    ),
    ClassicAlgorithm(
        """def digit_sum(n):
    total = 0
    while n:
        total += n % 10
        n //= 10
    return total
""",
        _integer(1, 999),
    ),
    ClassicAlgorithm(
        """def to_binary(n):
    bits = ''
    while n:
        bits = str(n % 2) + bits
        n //= 2
    return bits
""",
        _integer(0, 15),
    ),
    ClassicAlgorithm(
        """def count_bits(n):
    ones = 0
    while n:
        n &= n - 1
        ones += 1
    return ones
""",
        _integer(0, 15),
    ),
    ClassicAlgorithm(
        """def square_root(n):
    r = 0
    while (r + 1) * (r + 1) <= n:
        r += 1
    return r
""",
        _integer(0, 30),
    ),
    ClassicAlgorithm(
        """def multiply(a, b):
    total = 0
    for i in range(b):
        total += a
    return total
""",
        _pair(1, 5),
    ),
    ClassicAlgorithm(
        """def maximum(items):
    best = items[0]
    for item in items:
        if item > best:
            best = item
    return best
""",
        _list,
    ),
    ClassicAlgorithm(
        """def mean(items):
    try:
        return sum(items) // len(items)
    except ZeroDivisionError:
        return None
""",
        lambda rng: (_integers(rng, 0, 4),),
    ),
    ClassicAlgorithm(
        """def linear_search(items, wanted):
    for i in range(len(items)):
        if items[i] == wanted:
            return i
    return -1
""",
        _list_and_item,
    ),
    ClassicAlgorithm(
        """def binary_search(items, wanted):
    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low
""",
        _sorted_and_item,
    ),
    ClassicAlgorithm(
        """def bubble_sort(items):
    for end in range(len(items) - 1, 0, -1):
        for i in range(end):
            if items[i] > items[i + 1]:
                items[i], items[i + 1] = items[i + 1], items[i]
    return items
""",
        lambda rng: (_integers(rng, 2, 3),),
    ),
    ClassicAlgorithm(
        """def insertion_sort(items):
    for i in range(1, len(items)):
        k = i
        while k > 0 and items[k - 1] > items[k]:
            items[k - 1], items[k] = items[k], items[k - 1]
            k -= 1
    return items
""",
        lambda rng: (_integers(rng, 2, 3),),
    ),
    ClassicAlgorithm(
        """def selection_sort(items):
    done = []
    while items:
        least = min(items)
        items.remove(least)
        done.append(least)
    return done
""",
        lambda rng: (_integers(rng, 2, 3),),
    ),
    ClassicAlgorithm(
        """def merge(left, right):
    merged = []
    while left and right:
        if left[0] <= right[0]:
            merged.append(left.pop(0))
        else:
            merged.append(right.pop(0))
    return merged + left + right
""",
        _lists,
    ),
    ClassicAlgorithm(
        """def partition(items, pivot):
    small, large = [], []
    for item in items:
        if item < pivot:
            small.append(item)
        else:
            large.append(item)
    return small, large
""",
        _list_and_item,
    ),
    ClassicAlgorithm(
        """def reverse(items):
    i, k = 0, len(items) - 1
    while i < k:
        items[i], items[k] = items[k], items[i]
        i += 1
        k -= 1
    return items
""",
        _list,
    ),
    ClassicAlgorithm(
        """def unique(items):
    seen = set()
    kept = []
    for item in items:
        if item not in seen:
            seen.add(item)
            kept.append(item)
    return kept
""",
        lambda rng: ([rng.randrange(3) for _ in range(rng.randrange(2, 5))],),
    ),
    ClassicAlgorithm(
        """def prefix_sums(items):
    total = 0
    sums = []
    for item in items:
        total += item
        sums.append(total)
    return sums
""",
        _list,
    ),
    ClassicAlgorithm(
        """def best_run(items):
    best = run = 0
    for item in items:
        run = max(0, run + item)
        best = max(best, run)
    return best
""",
        lambda rng: ([rng.randrange(-5, 6) for _ in range(rng.randrange(2, 5))],),
    ),
    ClassicAlgorithm(
        """def two_sum(items, target):
    seen = {}
    for i, item in enumerate(items):
        if target - item in seen:
            return seen[target - item], i
        seen[item] = i
    raise ValueError(target)
""",
        lambda rng: (_integers(rng), rng.randrange(4, 14)),
    ),
    ClassicAlgorithm(
        """def rotate(items, k):
    for i in range(k):
        items.append(items.pop(0))
    return items
""",
        lambda rng: (_integers(rng), rng.randrange(1, 4)),
    ),
    ClassicAlgorithm(
        """def flatten(rows):
    flat = []
    for row in rows:
        for item in row:
            flat.append(item)
    return flat
""",
        _matrix,
    ),
    ClassicAlgorithm(
        """def transpose(rows):
    columns = []
    for k in range(len(rows[0])):
        column = []
        for row in rows:
            column.append(row[k])
        columns.append(column)
    return columns
""",
        _matrix,
    ),
    ClassicAlgorithm(
        """def is_palindrome(text):
    while len(text) > 1:
        if text[0] != text[-1]:
            return False
        text = text[1:-1]
    return True
""",
        _palindrome,
    ),
    ClassicAlgorithm(
        """def run_lengths(text):
    runs = []
    for c in text:
        if runs and runs[-1][0] == c:
            runs[-1][1] += 1
        else:
            runs.append([c, 1])
    return runs
""",
        _text("AB"),
    ),
    ClassicAlgorithm(
        """def balanced(text):
    depth = 0
    for c in text:
        if c == '(':
            depth += 1
        elif depth == 0:
            return False
        else:
            depth -= 1
    return depth == 0
""",
        _text("()", 2, 6),
    ),
    ClassicAlgorithm(
        """def count_letters(text):
    counts = {}
    for c in text:
        counts[c] = counts.get(c, 0) + 1
    return counts
""",
        _text("ABC"),
    ),
    ClassicAlgorithm(
        """def are_anagrams(a, b):
    letters = list(b)
    for c in a:
        if c not in letters:
            return False
        letters.remove(c)
    return not letters
""",
        _two_texts,
    ),
    ClassicAlgorithm(
        """def find_all(text, letter):
    places = []
    for i, c in enumerate(text):
        if c == letter:
            places.append(i)
    return places
""",
        _text_and_letter,
    ),
    ClassicAlgorithm(
        """def caesar(text, shift):
    coded = ''
    for c in text:
        coded += 'ABCDE'[('ABCDE'.index(c) + shift) % 5]
    return coded
""",
        lambda rng: (*_text("ABCDE", 1, 4)(rng), rng.randrange(1, 5)),
    ),
    ClassicAlgorithm(
        """def hamming(a, b):
    different = 0
    for x, y in zip(a, b):
        if x != y:
            different += 1
    return different
""",
        _two_texts,
    ),
    ClassicAlgorithm(
        """def hanoi(n, a, b, c):
    if n == 0:
        return 0
    return hanoi(n - 1, a, c, b) + 1 + hanoi(n - 1, c, b, a)
""",
        lambda rng: (rng.randrange(1, 3), *rng.sample("ABC", 3)),
    ),
    ClassicAlgorithm(
        """def invert(table):
    inverse = {}
    for key, value in table.items():
        inverse[value] = key
    return inverse
""",
        lambda rng: ({key: rng.randrange(10) for key in rng.sample("ABCDE", rng.randrange(1, 5))},),
    ),
)
