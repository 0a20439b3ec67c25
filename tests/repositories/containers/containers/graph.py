"""A directed graph with weights."""

from .heap import Heap


class Graph:
    """Edges by their starts."""

    def __init__(self):
        self._edges = {}

    def add(self, start, end, weight=1):
        """Add an edge and its nodes."""
        self._edges.setdefault(start, {})[end] = weight
        self._edges.setdefault(end, {})

    def nodes(self):
        """All nodes, in the order in which they came."""
        return list(self._edges)

    def distance(self, start, end):
        """Length of the shortest way, None where there is none."""
        best = {start: 0}
        heap = Heap([(0, start)], key=lambda entry: entry[0])
        while heap:
            far, node = heap.pop()
            if node == end:
                return far
            if far > best[node]:
                continue
            for neighbor, weight in self._edges[node].items():
                candidate = far + weight
                if neighbor not in best or candidate < best[neighbor]:
                    best[neighbor] = candidate
                    heap.push((candidate, neighbor))
        return None

    def order(self):
        """Nodes so that every edge leads forward; raises ValueError for a cycle."""
        incoming = {node: 0 for node in self._edges}
        for ends in self._edges.values():
            for end in ends:
                incoming[end] += 1
        ready = [node for node, count in incoming.items() if count == 0]
        ordered = []
        while ready:
            node = ready.pop(0)
            ordered.append(node)
            for end in self._edges[node]:
                incoming[end] -= 1
                if incoming[end] == 0:
                    ready.append(end)
        if len(ordered) < len(self._edges):
            raise ValueError("the graph has a cycle")
        return ordered
