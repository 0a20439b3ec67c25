"""Every exception class of the package is below `CwmError`, so that one `except` catches what the package raises."""

import ast
import builtins
import importlib
import pkgutil

import cwm_core
import pytest
from cwm_core import CwmError, DamagedFileError

# These must pass through the `except Exception` of recorded programs and of libraries, so they cannot be errors.
ENDINGS = {"RecordingLimit", "_Ended"}
# Plugins that are copied beside other code: on import, they change the environment of the process that runs pytest.
COPIED = {"cwm_core.environments._imports", "cwm_core.environments._report"}


def modules():
    for info in pkgutil.walk_packages(cwm_core.__path__, "cwm_core."):
        if info.name not in COPIED and not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


@pytest.mark.torch
def test_every_exception_is_below_the_root():
    found = {
        value
        for module in modules()
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__.startswith("cwm_core")
    }
    above = {cls.__name__ for cls in found if not issubclass(cls, CwmError)}
    assert {"SandboxError", "EndpointError", "DamagedFileError"} <= {cls.__name__ for cls in found}
    assert above == ENDINGS
    assert not any(issubclass(cls, Exception) for cls in found if cls.__name__ in ENDINGS)


def test_copied_plugins_define_no_exceptions():
    for name in COPIED:
        with open(importlib.util.find_spec(name).origin, encoding="utf-8") as file:
            bases = {b.id for n in ast.walk(ast.parse(file.read())) if isinstance(n, ast.ClassDef) for b in n.bases}
        assert not any(issubclass(getattr(builtins, base, object), BaseException) for base in bases)


def test_damage_is_a_value_error():
    assert issubclass(DamagedFileError, ValueError)
    assert issubclass(DamagedFileError, CwmError)
