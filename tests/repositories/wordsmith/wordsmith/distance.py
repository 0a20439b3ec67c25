"""How far texts are apart."""


def levenshtein(a, b):
    """Least number of insertions, deletions and replacements."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            cost = 0 if x == y else 1
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
    return row[-1]


def common_prefix(a, b):
    """The longest beginning of both."""
    length = 0
    for x, y in zip(a, b):
        if x != y:
            break
        length += 1
    return a[:length]


def closest(word, candidates, limit=3):
    """The candidate with least distance, None above `limit`; the first of equals."""
    best = None
    for candidate in candidates:
        distance = levenshtein(word, candidate)
        if distance <= limit and (best is None or distance < best[0]):
            best = (distance, candidate)
    return best[1] if best else None
