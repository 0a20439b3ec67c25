"""Sets of numbers as half-open intervals."""


def union(intervals):
    """Disjoint intervals in order, with touching ones joined."""
    joined = []
    for low, high in sorted(intervals):
        if low >= high:
            continue
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined


def intersection(a, b):
    """Return the intersection of two unions."""
    i = j = 0
    found = []
    while i < len(a) and j < len(b):
        low = max(a[i][0], b[j][0])
        high = min(a[i][1], b[j][1])
        if low < high:
            found.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found


def difference(a, b):
    """Return the difference of two unions."""
    left = []
    for low, high in a:
        for cut_low, cut_high in b:
            if cut_high <= low or cut_low >= high:
                continue
            if cut_low > low:
                left.append((low, cut_low))
            low = max(low, cut_high)
        if low < high:
            left.append((low, high))
    return left


def length(intervals):
    """How many numbers a union holds."""
    return sum(high - low for low, high in intervals)
