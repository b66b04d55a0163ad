"""A training on two processes that torchrun starts: one run, with the right status at its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.end_to_end.conftest import Project

LONG = ("--epochs", "60")
ALONE = ("--standalone", "--nproc-per-node", "2")


class Torchrun:
    """torchrun with two processes of `cifar-mlflow` on this machine; their output goes to a file.

    Args:
        options: of torchrun.
    """

    def __init__(self, project: Project, *arguments: str, options: tuple[str, ...] = ALONE) -> None:
        self.project = project
        self.file = project.folder / f"torchrun-{len(project.processes)}"
        with self.file.open("w") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", *options),
                    *("-m", "cifar_mlflow", *arguments),
                ],
                cwd=project.folder, env=project.env | {"OMP_NUM_THREADS": "1"}, text=True,
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        project.processes.append(self.process)

    def output(self) -> str:
        return self.file.read_text()

    def wait(self) -> int:
        return self.process.wait(timeout=120)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 120
        while text not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def kill(self, rank: int) -> None:
        """Kill the process of a rank, as the kernel does when memory runs out."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if parent == self.process.pid and b"RANK=%d" % rank in variables:
                os.kill(int(folder.name), signal.SIGKILL)
                return
        raise AssertionError(f"no process of rank {rank}")


def train(project: Project, *arguments: str) -> Torchrun:
    return Torchrun(project, "train", *project.quick, *arguments)


def resume(project: Project, run: Run) -> Torchrun:
    return Torchrun(project, "train", "--resume", run.info.run_id)


def only_run(project: Project) -> Run:
    (run,) = project.runs
    return run


def assert_complete(project: Project) -> None:
    """Check that the only run is finished and has the metrics of each epoch."""
    run = only_run(project)
    assert run.info.status == "FINISHED"
    history = project.client.get_metric_history(run.info.run_id, "val/accuracy")
    assert sorted({metric.step for metric in history}) == list(range(1, 61))
    assert run.data.metrics["test/accuracy"] == 1.0


@pytest.mark.slow
def test_two_processes_write_one_run_with_the_result_of_one_process(project: Project) -> None:
    fp32 = ("--epochs", "3", "--precision", "fp32")
    two = train(project, *fp32)
    assert two.wait() == 0, two.output()
    run = only_run(project)
    assert run.info.status == "FINISHED"
    assert run.data.params["world_size"] == "2"
    assert run.data.params["batch_size"] == "16"
    assert run.data.params["ranks"].startswith("2 on ")
    assert run.data.metrics["peak_memory_mib"] > 50
    lines = [line for line in two.output().splitlines() if "takes part in run" in line]
    assert [line.startswith("[rank 1] ") for line in lines] == [True]
    assert two.output().count("epoch 3/3 ") == 1

    project.train(*fp32)
    alone = project.runs[0]
    assert "world_size" not in alone.data.params
    for name in ("val/accuracy", "test/accuracy", "train/loss"):
        assert run.data.metrics[name] == pytest.approx(alone.data.metrics[name], abs=0.02), name


@pytest.mark.thorough
def test_a_signal_to_torchrun_ends_the_run_as_killed_and_any_number_of_processes_resumes_it(
    project: Project,
) -> None:
    two = train(project, *LONG)
    two.wait_for("epoch 3/60  ")
    two.process.send_signal(signal.SIGTERM)
    two.wait()
    assert "epoch 60/60 " not in two.output()
    run = only_run(project)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "stopped by SIGTERM")
    assert f"train --resume {run.info.run_id}" in two.output()
    project.run("train", "--resume", run.info.run_id)
    assert_complete(project)


@pytest.mark.thorough
def test_a_signal_on_one_of_two_machines_ends_their_run_as_killed(project: Project, free_port: int) -> None:
    """The second one gets its options by variables, as from Kubeflow."""
    options = {"nnodes": "2", "node_rank": "0", "master_addr": "127.0.0.1", "master_port": str(free_port)}
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    long = ("train", *project.quick, "--epochs", "5000")
    project.env["CIFAR_MLFLOW_CACHE"] = str(project.folder / "cache-0")
    machines = [Torchrun(project, *long, options=tuple(given))]
    project.env["CIFAR_MLFLOW_CACHE"] = str(project.folder / "cache-1")
    options["node_rank"] = "1"
    project.env |= {f"PET_{name.upper()}": value for name, value in options.items()}
    machines.append(Torchrun(project, *long, options=()))
    machines[0].wait_for("epoch 2/5000  ")
    machines[1].process.send_signal(signal.SIGTERM)
    for machine in machines:
        assert machine.wait() != 0
        assert "PeerLostError" not in machine.output()
    run = only_run(project)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "stopped by SIGTERM")
    assert f"train --resume {run.info.run_id}" in machines[0].output()


@pytest.mark.thorough
def test_a_second_torchrun_leaves_a_run_that_is_being_trained_alone(project: Project) -> None:
    two = train(project, "--epochs", "5000")
    two.wait_for("epoch 2/5000  ")
    second = resume(project, only_run(project))
    assert second.wait() != 0
    assert "is being trained by another process" in second.output()
    assert only_run(project).info.status == "RUNNING"
    two.process.send_signal(signal.SIGTERM)
    two.wait()
    assert only_run(project).info.status == "KILLED"


@pytest.mark.thorough
@pytest.mark.parametrize("rank", [1, 0])
def test_a_killed_process_ends_the_run_as_failed_and_it_can_be_resumed(project: Project, rank: int) -> None:
    two = train(project, *LONG)
    two.wait_for("epoch 3/60  ")
    two.kill(rank)
    assert two.wait() != 0
    run = only_run(project)
    assert run.info.status == "FAILED"
    assert "was killed" in run.data.tags["error"]
    again = resume(project, run)
    assert again.wait() == 0, again.output()
    assert_complete(project)
    assert "error" not in only_run(project).data.tags
    assert only_run(project).data.tags["resumed_on"].startswith("2 on ")


@pytest.mark.thorough
def test_more_processes_than_images_per_step_are_refused_before_a_run_starts(project: Project) -> None:
    two = train(project, "--batch-size", "1")
    assert two.wait() != 0
    assert "2 processes and accumulate=1 need at least 2 images per step" in two.output()
    assert project.runs == []


@pytest.mark.thorough
def test_the_processes_stop_when_torchrun_is_killed(project: Project) -> None:
    """Nothing else would stop them: they are in a session of their own, which Ctrl-C does not reach."""
    two = train(project, "--epochs", "5000")
    two.wait_for("epoch 2/5000  ")
    two.process.kill()
    project.wait_for(lambda: only_run(project).info.status != "RUNNING", "the end of the run")
    assert only_run(project).info.status == "KILLED"
    assert f"train --resume {only_run(project).info.run_id}" in two.output()


@pytest.mark.slow
def test_a_process_that_resumes_while_the_others_begin_is_refused(project: Project, free_port: int) -> None:
    """A launcher that starts one process per machine may be given two commands."""
    (project.folder / "output").touch()
    project.env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "2"}
    processes = []
    for rank, arguments in enumerate((["--resume", "0" * 32], project.quick)):
        project.env["RANK"] = str(rank)
        processes.append(project.start("train", *arguments))
        (project.folder / "output").rename(project.folder / f"output-{rank}")
    for rank, process in enumerate(processes):
        process.wait(timeout=120)
        output = (project.folder / f"output-{rank}").read_text()
        assert process.returncode, output
        assert "must have the same settings and images, but resume is" in output
        assert "Traceback" not in output
    assert project.runs == []


def test_only_train_runs_on_several_processes(project: Project) -> None:
    project.env |= {"MASTER_ADDR": "localhost", "WORLD_SIZE": "2", "RANK": "1"}
    output = project.run("evaluate", "--model", "model.h5", code=2)
    assert output.startswith("[rank 1] Error: torchrun started 2 processes of evaluate")


@pytest.mark.thorough
def test_two_processes_follow_one_plan_of_a_time_budget(project: Project) -> None:
    quick = ("--model", "cnn", "--width", "0.25", "--batch-size", "16", "--threads", "1")
    images = ("--dataset", "folder", "--data-dir", str(project.images))
    short = Torchrun(project, "train", *quick, *images, "--minutes", "1e-4")
    assert short.wait() != 0
    assert "--minutes 0.0001 is too short for one epoch of cnn" in short.output()
    assert project.runs == []

    two = Torchrun(project, "train", *quick, *images, "--minutes", "0.5")
    assert two.wait() == 0, two.output()
    run = only_run(project)
    epochs = int(run.data.params["epochs"])
    assert two.output().count(f"Planned {epochs} epochs") == 1
    history = project.client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted({metric.step for metric in history}) == list(range(1, epochs + 1))
