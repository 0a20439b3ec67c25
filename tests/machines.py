"""The backends of environments that this machine can run, for tests that hold them all to the same."""

import dataclasses

import docker_image
import pytest
from cwm_core import machines
from cwm_core.machines import Backend, DockerBackend, SandboxBackend

REFUSALS = {"bubblewrap": machines.bubblewrap_refusal(), "process": None, "docker": docker_image.refusal()}
LIMITS = dataclasses.replace(
    machines.Limits(),
    seconds=60.0,
    output_bytes=4000,
    memory_bytes=512 << 20,
    file_bytes=32 << 20,
    disk_bytes=64 << 20,
)


def kinds(*names: str) -> list:
    """Parameters for these kinds of backend, skipped with the reason where one is not possible."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(REFUSALS[name] is not None, reason=f"no {name}: {REFUSALS[name]}"))
        for name in names
    ]


def backend_of(kind: str, limits: machines.Limits = LIMITS) -> Backend:
    """A backend by its kind."""
    if kind == "docker":
        return DockerBackend(docker_image.image(), limits=limits)
    return SandboxBackend(kind, limits=limits)
