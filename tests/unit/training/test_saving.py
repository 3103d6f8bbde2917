"""The writer thread: order of the files, errors, and the weights in each checkpoint."""

import signal
import threading
from pathlib import Path

import pytest

from seqtk.checkpoint.model_file import load_tensors
from seqtk.training.saving import Writer
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import trainer
from tests.waiting import PATIENCE


def fails() -> None:
    raise UserError("disk full")


class TestThread:
    def test_caller_continues_while_a_file_is_written(self) -> None:
        go, written = threading.Event(), []
        with Writer(asynchronous=True) as writer:
            writer.run(lambda: written.append(go.wait(PATIENCE)))
            assert not written
            go.set()
        assert written == [True]

    def test_writer_runs_functions_in_order(self) -> None:
        written: list[int] = []
        with Writer(asynchronous=True) as writer:
            for number in range(20):
                writer.run(lambda number=number: written.append(number))  # type: ignore[misc]
        assert written == list(range(20))

    def test_writer_raises_an_error_at_the_next_call(self) -> None:
        with Writer(asynchronous=True) as writer:
            writer.run(fails)
            with pytest.raises(UserError, match="disk full"):
                writer.run(lambda: pytest.fail("it ran"))

    def test_writer_raises_an_error_at_the_end_of_its_context(self) -> None:
        with pytest.raises(UserError, match="disk full"), Writer(asynchronous=True) as writer:
            writer.run(fails)

    def test_pending_write_finishes_before_an_exception(self) -> None:
        written: list[int] = []

        def interrupted() -> None:
            with Writer(asynchronous=True) as writer:
                writer.run(lambda: written.append(1))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert written == [1]

    def test_write_error_is_reported_with_another_exception(self) -> None:
        lines: list[str] = []

        def raising() -> None:
            with Writer(asynchronous=True, report=lines.append) as writer:
                writer.run(fails)
                raise KeyError("other")

        with pytest.raises(KeyError, match="other"):
            raising()
        assert ["disk full" in line for line in lines] == [True]

    def test_interrupted_wait_can_be_repeated(self) -> None:
        """Ctrl-C ends the wait for the thread. The next wait is for the same function."""
        go, written = threading.Event(), []

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        writer = Writer(asynchronous=True)
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            writer.run(lambda: written.append(go.wait(10)))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                writer.wait()
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert not written
        go.set()
        writer.wait()
        assert written == [True]


class TestCheckpoints:
    def test_next_update_does_not_change_a_pending_write(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In this test, each write of a checkpoint waits for the next update."""
        run = trainer(tiny_corpus, tmp_path / "thread", checkpoint__every=1, checkpoint__keep_last=9, max_updates=4)
        updated, save, update = threading.Event(), run.checkpoints.save, run.update

        def late(*given: object, **more: object) -> Path:
            updated.wait(0.5)
            updated.clear()
            return save(*given, **more)  # type: ignore[arg-type]

        def signaling(*given: object) -> None:
            update(*given)  # type: ignore[arg-type]
            updated.set()

        monkeypatch.setattr(run.checkpoints, "save", late)
        monkeypatch.setattr(run, "update", signaling)
        run.fit()
        settings = {"checkpoint__every": 1, "checkpoint__keep_last": 9, "checkpoint__asynchronous": False}
        trainer(tiny_corpus, tmp_path / "once", max_updates=4, **settings).fit()
        for number in range(1, 5):
            for name in ("model", "optimizer"):
                one, other = (
                    load_tensors(tmp_path / way / f"update_{number:08d}" / f"{name}.safetensors")[0]
                    for way in ("thread", "once")
                )
                assert all(one[key].equal(other[key]) for key in one)
