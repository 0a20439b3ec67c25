"""Add the imports that graders provide for a solution, and find the folders that a solution imports from."""

from __future__ import annotations

import ast
import builtins
import os
import symtable
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import PathFinder

# Names by module that the graders of APPS and of LeetCode import before they run a solution.
_FROM = {
    "typing": (
        "Any Callable Deque DefaultDict Dict FrozenSet Generator Iterable Iterator List Mapping NamedTuple Optional "
        "Sequence Set Tuple Type TypeVar Union"
    ),
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
    "itertools": (
        "accumulate chain combinations combinations_with_replacement count cycle groupby islice pairwise permutations "
        "product repeat starmap takewhile zip_longest"
    ),
    "functools": "cache cmp_to_key lru_cache partial reduce",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "bisect": "bisect bisect_left bisect_right insort insort_left insort_right",
    "math": (
        "acos asin atan atan2 ceil comb cos dist e exp factorial fabs floor gcd hypot inf isqrt lcm log log10 log2 nan "
        "perm pi prod sin sqrt tan"
    ),
    "operator": "add itemgetter mul sub xor",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits",
    "fractions": "Fraction",
    "decimal": "Decimal",
    "copy": "deepcopy",
    "dataclasses": "dataclass field",
}
_MODULES = (
    "bisect", "collections", "copy", "decimal", "fractions", "functools", "heapq", "itertools", "math", "operator",
    "os", "random", "re", "statistics", "string", "sys", "time", "typing",
)  # fmt: skip
_IMPORTS = {name: f"from {module} import {name}" for module, names in _FROM.items() for name in names.split()}
_IMPORTS |= {name: f"import {name}" for name in _MODULES if name not in _IMPORTS}
_IMPORTS["np"] = "import numpy as np"


def with_prelude(code: str) -> str:
    """Return a solution with an import of each name that it uses, does not define, and that graders provide.

    The imports stand on lines of their own before the first statement, but after imports from `__future__` and the
    docstring. A solution that needs none is returned unchanged.
    """
    missing = _undefined(code) & _IMPORTS.keys()
    if not missing:
        return code
    lines = code.splitlines(keepends=True)
    place = _first_line(code)
    return "".join([*lines[:place], *sorted(_IMPORTS[name] + "\n" for name in missing), *lines[place:]])


def import_paths(code: str) -> tuple[str, ...]:
    """Return the folders of installed packages, outside the standard library, that the code imports from."""
    found = set()
    for name in _imported(code) - sys.stdlib_module_names:
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.origin:
            inside = spec.submodule_search_locations is not None
            found.add(os.path.dirname(os.path.dirname(spec.origin) if inside else spec.origin))
    return tuple(sorted(found))


def _undefined(code: str) -> set[str]:
    """Return the global names that code reads and neither binds nor finds among the builtins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid escapes such as "\d"
        module = symtable.symtable(code, "<solution>", "exec")
    tables = list(_tables(module))
    read = {s.get_name() for table in tables for s in table.get_symbols() if s.is_referenced() and _is_global(table, s)}
    bound = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    bound |= {s.get_name() for t in tables for s in t.get_symbols() if s.is_declared_global() and s.is_assigned()}
    return {name for name in read - bound if not hasattr(builtins, name)}


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _is_global(table: symtable.SymbolTable, symbol: symtable.Symbol) -> bool:
    return symbol.is_global() or table.get_type() == "module"


def _first_line(code: str) -> int:
    """Return the number of lines before the place for imports."""
    last = 0
    for node in ast.parse(code).body:
        docstring = last == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        last = node.end_lineno or node.lineno
    return last


def _imported(code: str) -> set[str]:
    """Return the top-level modules that code imports by name, anywhere."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}
