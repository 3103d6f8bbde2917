"""The environment of processes that srun starts: rank, world size and master address."""

import pytest

from seqtk.utils.errors import UserError
from seqtk.utils.slurm import adopt_slurm, first_host

TASK = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[003-004]",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "1234567",
}


class TestWorld:
    def test_slurm_variables_set_rank_and_world_size(self) -> None:
        environment = dict(TASK)
        adopt_slurm(environment)
        world = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
        meeting = {"MASTER_ADDR": "gpu003", "MASTER_PORT": "24567", "SEQTK_RUN_ID": "1234567.0"}
        assert environment == {**TASK, **world, **meeting}

    def test_slurm_steps_of_a_job_have_different_ports(self) -> None:
        steps = [{**TASK, "SLURM_STEP_ID": step} for step in "01"]
        for environment in steps:
            adopt_slurm(environment)
        for name in ("MASTER_PORT", "SEQTK_RUN_ID"):
            assert steps[0][name] != steps[1][name]

    @pytest.mark.parametrize(
        ("tasks", "node", "local"),
        [("3,1", "0", "3"), ("3,1", "1", "1"), ("2(x2)", "1", "2"), ("1(x2),2", "2", "2"), ("9", "0", "2")],
    )
    def test_hosts_may_have_different_numbers_of_tasks(self, tasks: str, node: str, local: str) -> None:
        environment = {**TASK, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_TASKS_PER_NODE": "4", "SLURM_NODEID": node}
        adopt_slurm(environment)
        assert environment["LOCAL_WORLD_SIZE"] == local

    @pytest.mark.parametrize(
        "changed",
        [
            {"SLURM_NTASKS": "1"},
            {"RANK": "0", "WORLD_SIZE": "1"},
            {"SLURM_PROCID": None},  # salloc without srun
        ],
        ids=["one task", "torchrun", "no srun"],
    )
    def test_environment_without_srun_is_not_changed(self, changed: dict[str, str | None]) -> None:
        environment = {name: value for name, value in {**TASK, **changed}.items() if value is not None}
        before = dict(environment)
        adopt_slurm(environment)
        assert environment == before

    def test_existing_master_address_is_kept(self) -> None:
        environment = {**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"}
        adopt_slurm(environment)
        assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "7")

    @pytest.mark.parametrize("name", ["SLURM_LOCALID", "SLURM_JOB_NODELIST"])
    def test_error_names_a_missing_slurm_variable(self, name: str) -> None:
        environment = {key: value for key, value in TASK.items() if key != name}
        with pytest.raises(UserError, match=name):
            adopt_slurm(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login", "login"),
        ("127.0.0.1", "127.0.0.1"),
        ("a,b", "a"),
        ("gpu[003-007,12],x", "gpu003"),
        ("gpu-[9,12]", "gpu-9"),
        ("rack[1-2]node[07-08].site", "rack1node07.site"),
    ],
)
def test_first_host_of_a_node_list_is_found(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
