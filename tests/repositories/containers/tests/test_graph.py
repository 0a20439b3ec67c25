import pytest
from containers.graph import Graph


@pytest.fixture
def graph():
    graph = Graph()
    for start, end, weight in [("a", "b", 4), ("a", "c", 1), ("c", "b", 2), ("b", "d", 5), ("c", "d", 9)]:
        graph.add(start, end, weight)
    return graph


def test_nodes(graph):
    assert graph.nodes() == ["a", "b", "c", "d"]


def test_distance(graph):
    assert graph.distance("a", "d") == 8
    assert graph.distance("a", "a") == 0
    assert graph.distance("d", "a") is None


def test_order(graph):
    assert graph.order() == ["a", "c", "b", "d"]


def test_cycle(graph):
    graph.add("d", "a")
    with pytest.raises(ValueError, match="cycle"):
        graph.order()
