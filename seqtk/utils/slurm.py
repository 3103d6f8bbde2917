"""The variables of SLURM, as those that torchrun sets: `srun seqtk-train` needs no launcher."""

import re
from collections.abc import MutableMapping

from seqtk.utils.errors import UserError

PORTS = range(20_000, 30_000)
"""Below the ports that Linux gives to clients. A job uses one of them, by its number."""


def adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Sets the variables of torchrun in a process that srun started as one of several.

    Variables that are already set, by torchrun or by hand, stay. The first process listens on the first host.

    Raises:
        UserError: If a variable is missing or not a number.
    """
    set_by_torchrun = environment.keys() & {"RANK", "WORLD_SIZE"}
    if set_by_torchrun or "SLURM_PROCID" not in environment or environment.get("SLURM_NTASKS", "1") == "1":
        return
    rank, size, local = (_number(environment, f"SLURM_{name}") for name in ("PROCID", "NTASKS", "LOCALID"))
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if not nodes and "MASTER_ADDR" not in environment:
        raise UserError(
            f"SLURM_NTASKS={size}, but SLURM_JOB_NODELIST is not set.", "Set MASTER_ADDR to the host of the first task."
        )
    hosts = _number(environment, "SLURM_NNODES") if "SLURM_NNODES" in environment else 1
    job = re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or "0"
    environment.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local), LOCAL_WORLD_SIZE=str(size // hosts))
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    environment.setdefault("MASTER_PORT", str(PORTS[int(job) % len(PORTS)]))


def first_host(nodes: str) -> str:
    """Returns the first host of a list such as `gpu[003-007,12],login`."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _number(environment: MutableMapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", value):
        raise UserError(f"{name}={value or 'nothing'} is not a number.", "Start the processes with srun or torchrun.")
    return int(value)
