"""Named resources: what one node of a job may use. `--h h100x8` asks for one by name.

pyproject.toml registers each under the entry point group `torchx.named_resources`. They leave a little of the machine
to its operating system and to the scheduler's own processes.
"""

from torchx.specs import Resource

GIB = 1024  # in MB, the unit of TorchX


def cpu_2() -> Resource:
    """Two cores, no GPU."""
    return Resource(cpu=2, gpu=0, memMB=7 * GIB)


def h100x1() -> Resource:
    """One H100 of 80 GB and an eighth of its machine."""
    return Resource(cpu=24, gpu=1, memMB=220 * GIB)


def h100x8() -> Resource:
    """A machine of eight H100 of 80 GB."""
    return Resource(cpu=192, gpu=8, memMB=1900 * GIB)


def a100x8() -> Resource:
    """A machine of eight A100."""
    return Resource(cpu=90, gpu=8, memMB=1080 * GIB)
