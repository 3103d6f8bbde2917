"""Processes on several hosts: tasks of SLURM, and two network namespaces that simulate two hosts."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from seqtk.checkpoint.model_file import load_tensors
from tests.e2e.runs import Run
from tests.unit.training.helpers import losses
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]
SETTINGS = (  # noqa: SIM905
    "device=cpu threads=1 batch.max_tokens=400 model.dim=16 model.ffn_dim=32 model.heads=2 model.dropout=0 "
    "model.encoder.layers=1 model.decoder.layers=1 schedule.warmup_updates=4 optimizer.lr=0.01 validation.every=100000 "
    "checkpoint.every=5 log.every=1 log.tensorboard=false attention.dropout=0"
).split()


class TestSlurm:
    def test_losses_of_two_tasks_equal_one_process(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """The tasks start without torchrun and without the setting `parallel`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "127.0.0.1", "MASTER_PORT": str(port)}
        tasks = [
            Run(
                tiny_corpus,
                tmp_path / "two",
                *SETTINGS,
                "max_updates=6",
                "parallel=null",
                environment={**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"},
            )
            for rank in range(2)
        ]
        for task in tasks:
            assert task.wait() == 0, task.printed
        one = Run(tiny_corpus, tmp_path / "one", *SETTINGS, "max_updates=6", "update_freq=2", "parallel=null")
        assert one.wait() == 0, one.printed
        assert "2 × cpu" in tasks[0].printed
        expected = [loss for _, loss in losses(tmp_path / "one")]
        assert [loss for _, loss in losses(tmp_path / "two")] == pytest.approx(expected, rel=1e-6)

    def test_missing_task_ends_the_run_with_an_error(self, tiny_corpus: Path, tmp_path: Path) -> None:
        job = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        task = Run(tiny_corpus, tmp_path / "run", *SETTINGS, "parallel={kind:ddp,timeout:1}", environment=job)
        assert task.wait() == 2
        assert "could not connect to the other processes at 127.0.0.1:20000" in task.printed
        assert not (tmp_path / "run").exists()


class Hosts:
    """Two network namespaces, connected by a pair of virtual network devices."""

    addresses = "10.213.0.1", "10.213.0.2"

    def __init__(self) -> None:
        self.names = [f"seqtk{os.getpid()}{side}" for side in "ab"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Hosts":
        a, b = self.names
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b)
        for name, address in zip(self.names, self.addresses, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            for device in (name, "lo"):
                _ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def cut(self) -> None:
        """Disconnects the hosts."""
        _ip("-n", self.names[1], "link", "set", self.names[1], "down")

    def start(self, output: Path, *arguments: str, restarts: int = 0) -> None:
        """Starts an agent of torchrun on each host, with one process each."""
        for number, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            torchrun = (
                f"--nnodes 2 --nproc-per-node 1 --max-restarts {restarts} --rdzv-backend c10d --rdzv-id test "
                f"--rdzv-endpoint {self.addresses[0]}:29400 --rdzv-conf is_host={1 - number} --local-addr {address}"
            ).split()
            with (output / f"host{number}").open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [
                            "ip",
                            "netns",
                            "exec",
                            name,
                            *LAUNCHER,
                            *torchrun,
                            "-m",
                            "seqtk.cli.train",
                            *SETTINGS,
                            *arguments,
                        ],
                        stdout=file,
                        stderr=file,
                        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": name},
                        start_new_session=True,
                    )
                )


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    try:
        with Hosts() as both:
            yield both
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")


def wait_for_updates(save_dir: Path, count: int, hosts: Hosts) -> None:
    wait_until(
        lambda: (save_dir / "log.jsonl").is_file() and len(losses(save_dir)) >= count,
        running=lambda: all(process.poll() is None for process in hosts.processes),
    )


class TestTwoHosts:
    @pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
    def test_losses_of_two_hosts_equal_one_process(
        self, hosts: Hosts, tiny_corpus: Path, tmp_path: Path, parallel: str
    ) -> None:
        run = ("max_updates=6", f"task.data={tiny_corpus}", f"parallel={parallel}")
        hosts.start(tmp_path, *run, f"save_dir={tmp_path / 'two'}")
        for process in hosts.processes:
            assert process.wait(timeout=PATIENCE) == 0, (tmp_path / "host0").read_text()
        one = Run(tiny_corpus, tmp_path / "one", *SETTINGS, "max_updates=6", "update_freq=2", "parallel=null")
        assert one.wait() == 0, one.printed
        expected = [loss for _, loss in losses(tmp_path / "one")]
        assert [loss for _, loss in losses(tmp_path / "two")] == pytest.approx(expected, rel=1e-6)

    def test_run_ends_if_the_other_host_is_disconnected(self, hosts: Hosts, tiny_corpus: Path, tmp_path: Path) -> None:
        hosts.start(tmp_path, "max_updates=1000000", f"task.data={tiny_corpus}", f"save_dir={tmp_path / 'run'}")
        wait_for_updates(tmp_path / "run", 10, hosts)
        hosts.cut()
        began = time.monotonic()
        assert hosts.processes[0].wait(timeout=120) != 0  # 30 seconds, and more on a busy machine
        print(f"ended after {time.monotonic() - began:.1f} seconds")
        assert "Process 1 is lost" in (tmp_path / "host0").read_text()
        assert load_tensors(tmp_path / "run" / (tmp_path / "run" / "latest").read_text() / "model.safetensors")[0]


class TestElasticRestart:
    def test_torchrun_restart_resumes_bit_exactly(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """One process is killed. torchrun restarts both processes with the same store, which has the old addresses."""
        plugin = tmp_path / "dies.py"
        plugin.write_text(
            "import os, signal, time\n"
            "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '1' and os.environ['RANK'] == '0':\n"
            "    time.sleep(2)  # until the other has looked for an address\n"
            "from seqtk.tasks.translation import TranslationTask\n"
            "collate, calls = TranslationTask.collate, []\n"
            "def dies(self, *given):\n"
            "    calls.append(1)\n"
            "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.environ['RANK'] == '1'\n"
            "    if first and len(calls) == 15:\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return collate(self, *given)\n"
            "TranslationTask.collate = dies\n"
        )
        torchrun = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
        command = [*LAUNCHER, *torchrun, "-m", "seqtk.cli.train", *SETTINGS]
        printed = {}
        for name, more in (("killed", [f"user_dir={plugin}"]), ("whole", [])):
            ran = subprocess.run(
                [*command, f"task.data={tiny_corpus}", f"save_dir={tmp_path / name}", "max_updates=24", *more],
                capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr
            printed[name] = ran.stderr
        assert "Resuming from update" in printed["killed"]
        assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
        killed, whole = (
            load_tensors(tmp_path / name / "update_00000024" / "model.safetensors")[0] for name in ("killed", "whole")
        )
        assert all(killed[key].equal(whole[key]) for key in whole)
