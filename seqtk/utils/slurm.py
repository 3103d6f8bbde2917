"""Sets torchrun's environment variables from SLURM's, so that `srun seqtk-train` needs no launcher."""

import re
from collections.abc import MutableMapping
from math import ceil

from seqtk.utils.errors import UserError

PORTS = range(20_000, 30_000)
"""Ports for MASTER_PORT, below the ports that Linux assigns to clients. The numbers of job and step select one."""
RUN_ID = "SEQTK_RUN_ID"
"""The environment variable that identifies the run of a process, in case two runs use the same address and port."""


def adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Sets torchrun's variables if srun started this process as one of several.

    Variables that are already set are not changed. The first process listens on the first host.

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
    job, step = (int(re.sub(r"\D", "", environment.get(f"SLURM_{name}_ID", "")) or 0) for name in ("JOB", "STEP"))
    local_size = _tasks_on_host(environment, size=size)
    environment.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local), LOCAL_WORLD_SIZE=str(local_size))
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    environment.setdefault("MASTER_PORT", str(PORTS[(job + 997 * step) % len(PORTS)]))  # jobs have adjacent numbers
    environment.setdefault(RUN_ID, f"{job}.{step}")


def _tasks_on_host(environment: MutableMapping[str, str], *, size: int) -> int:
    """Returns the number of tasks on this host. Without a valid list from SLURM, hosts have equal numbers of tasks."""
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    counts = tasks_per_node(listed)
    if sum(counts) == size and (len(set(counts)) == 1 or "SLURM_NODEID" in environment):
        node = _number(environment, "SLURM_NODEID") if len(set(counts)) > 1 else 0
        if node < len(counts):
            return counts[node]
    hosts = _number(environment, "SLURM_NNODES") if "SLURM_NNODES" in environment else 1
    return ceil(size / max(hosts, 1))


def tasks_per_node(listed: str) -> list[int]:
    """Returns the number of tasks of each host: [4, 4, 3] for `4(x2),3`. Returns [] if `listed` is invalid."""
    entries = [re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", entry) for entry in listed.split(",")]
    if not all(entries):
        return []
    return [int(entry[1]) for entry in entries if entry for _ in range(int(entry[2] or 1))]


def first_host(nodes: str) -> str:
    """Returns the first host of a list such as `gpu[003-007,12],login`."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _number(environment: MutableMapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", value):
        problem = f"{name}={value} is not a number." if value else f"{name} is not set."
        raise UserError(problem, "Start the processes with srun or torchrun.")
    return int(value)
