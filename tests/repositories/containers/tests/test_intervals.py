from containers.intervals import difference, intersection, length, union


def test_union():
    assert union([(5, 7), (1, 3), (2, 4), (4, 5), (9, 9)]) == [(1, 7)]
    assert union([(1, 2), (4, 5)]) == [(1, 2), (4, 5)]


def test_intersection():
    assert intersection([(0, 5), (8, 10)], [(3, 9)]) == [(3, 5), (8, 9)]
    assert intersection([(0, 1)], [(1, 2)]) == []


def test_difference():
    assert difference([(0, 10)], [(2, 4), (6, 12)]) == [(0, 2), (4, 6)]
    assert difference([(0, 1)], []) == [(0, 1)]


def test_length():
    assert length([(0, 3), (5, 9)]) == 7
