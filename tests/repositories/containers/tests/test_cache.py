import pytest
from containers.cache import Cache


def test_forgets_the_longest_unused():
    cache = Cache(2)
    assert cache.put("a", 1) is None
    cache.put("b", 2)
    assert cache.get("a") == 1
    assert cache.put("c", 3) == "b"
    assert cache.keys() == ["a", "c"]


def test_put_again():
    cache = Cache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.put("a", 3) is None
    assert cache.keys() == ["b", "a"]
    assert cache.get("a") == 3


def test_rate():
    cache = Cache(1)
    assert cache.rate() == 0.0
    cache.put("a", 1)
    cache.get("a")
    cache.get("b", default=0)
    cache.get("a")
    cache.get("a")
    assert cache.rate() == 0.75


def test_size():
    with pytest.raises(ValueError):
        Cache(0)
