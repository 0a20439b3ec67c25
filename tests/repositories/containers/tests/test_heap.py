import pytest
from containers.heap import Heap, merge


def test_order():
    heap = Heap([5, 2, 8, 1, 9, 3])
    assert [heap.pop() for _ in range(6)] == [1, 2, 3, 5, 8, 9]


def test_key():
    heap = Heap(["ccc", "a", "bb"], key=lambda text: -len(text))
    assert heap.peek() == "ccc"
    assert len(heap) == 3


def test_empty():
    with pytest.raises(IndexError):
        Heap().pop()
    with pytest.raises(IndexError):
        Heap().peek()


def test_merge():
    assert merge([1, 4, 7], [], [2, 5], [3]) == [1, 2, 3, 4, 5, 7]
