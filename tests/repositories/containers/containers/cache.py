"""A cache that forgets what was used longest ago."""


class Cache:
    """At most `size` values by key."""

    def __init__(self, size):
        if size < 1:
            raise ValueError("a cache holds at least one value")
        self.size = size
        self.hits = 0
        self.misses = 0
        self._values = {}

    def get(self, key, default=None):
        """The value of a key, which is then the most recently used."""
        if key not in self._values:
            self.misses += 1
            return default
        self.hits += 1
        value = self._values.pop(key)
        self._values[key] = value
        return value

    def put(self, key, value):
        """Set a value; the key forgotten for it, or None."""
        forgotten = None
        if key in self._values:
            del self._values[key]
        elif len(self._values) >= self.size:
            forgotten = next(iter(self._values))
            del self._values[forgotten]
        self._values[key] = value
        return forgotten

    def keys(self):
        """Keys, the longest unused first."""
        return list(self._values)

    def rate(self):
        """Share of lookups that hit; 0 before the first."""
        total = self.hits + self.misses
        return self.hits / total if total else 0.0
