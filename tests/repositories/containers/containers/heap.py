"""A binary heap with a key."""


class Heap:
    """Gives back what is smallest by `key` first."""

    def __init__(self, items=(), key=None):
        self._key = key or (lambda item: item)
        self._items = []
        for item in items:
            self.push(item)

    def __len__(self):
        return len(self._items)

    def push(self, item):
        """Add an item."""
        self._items.append(item)
        self._up(len(self._items) - 1)

    def pop(self):
        """Remove the smallest and return it."""
        if not self._items:
            raise IndexError("the heap is empty")
        last = len(self._items) - 1
        self._swap(0, last)
        item = self._items.pop()
        self._down(0)
        return item

    def peek(self):
        """The smallest."""
        if not self._items:
            raise IndexError("the heap is empty")
        return self._items[0]

    def _less(self, i, j):
        return self._key(self._items[i]) < self._key(self._items[j])

    def _swap(self, i, j):
        self._items[i], self._items[j] = self._items[j], self._items[i]

    def _up(self, at):
        while at > 0:
            parent = (at - 1) // 2
            if not self._less(at, parent):
                break
            self._swap(at, parent)
            at = parent

    def _down(self, at):
        size = len(self._items)
        while True:
            least = at
            for child in (2 * at + 1, 2 * at + 2):
                if child < size and self._less(child, least):
                    least = child
            if least == at:
                return
            self._swap(at, least)
            at = least


def merge(*lists):
    """Sorted lists as one sorted list."""
    heap = Heap(key=lambda entry: entry[0])
    for number, items in enumerate(lists):
        if items:
            heap.push((items[0], number, 0))
    merged = []
    while heap:
        value, number, at = heap.pop()
        merged.append(value)
        if at + 1 < len(lists[number]):
            heap.push((lists[number][at + 1], number, at + 1))
    return merged
