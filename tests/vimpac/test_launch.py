"""Processes that a launcher started join or stop; none trains beside another in one directory."""

import os
import re
import socket
import subprocess

import pytest
import torch
import torch.distributed as dist

from tests.vimpac.runs import ENVIRONMENT, make_store, program, tiny_config
from vimpac import cli
from vimpac.errors import UsageError, VimpacError
from vimpac.train.distributed import is_main_process, join_world
from vimpac.train.launch import Place, find_place
from vimpac.train.loop import Loop
from vimpac.train.pretrain import pretrain

VARIABLES = (
    "RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID "
    "SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_NTASKS SLURM_JOB_ID SLURM_STEP_ID "
    "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK "
    "PMI_RANK PMI_SIZE MPI_LOCALRANKID"
).split()
MEET = "MASTER_ADDR=node0 MASTER_PORT=29500 "
TASK = "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 "
MPI = "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 "


@pytest.fixture
def launch(monkeypatch):
    """Sets the variables of a launcher, given as NAME=value words, and no others."""

    def set_variables(words):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for word in words.split():
            monkeypatch.setenv(*word.split("="))

    return set_variables


@pytest.mark.parametrize(
    "words",
    [
        "",
        "RANK=0 WORLD_SIZE=1 MASTER_ADDR=node0 MASTER_PORT=1",
        "SLURM_JOB_ID=7 SLURM_NTASKS=4",  # the shell of salloc
        "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_LOCALID=0",  # a batch script
        "SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_STEP_ID=4294967290 SLURM_STEP_NUM_TASKS=1",  # a step
        TASK + "SLURM_PROCID=2 WORLD_SIZE=1",  # the user says so
        TASK + "SLURM_PROCID=2 WORLD_SIZE=1 RANK=0",
    ],
)
def test_process_is_alone(launch, words):
    launch(words)
    assert find_place() == Place()


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (MEET + "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1", Place(3, 4, 1)),
        (MEET + "RANK=3 WORLD_SIZE=4", Place(3, 4)),
        # The number on the machine would be that of the batch script, for all of them.
        (MEET + "RANK=3 WORLD_SIZE=4 SLURM_PROCID=0 SLURM_LOCALID=0", Place(3, 4)),
        (MEET + TASK + "SLURM_PROCID=3", Place(3, 4, 1)),
        (MEET + TASK + "SLURM_PROCID=3 WORLD_SIZE=4", Place(3, 4, 1)),
        (MEET + TASK + "SLURM_PROCID=3 RANK=3 WORLD_SIZE=4", Place(3, 4, 1)),
        (MEET + MPI, Place(3, 4, 1)),
        # mpirun starts one of its own per node with srun
        (MEET + MPI + "SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0", Place(3, 4, 1)),
        (MEET + "PMI_RANK=3 PMI_SIZE=4 MPI_LOCALRANKID=1", Place(3, 4, 1)),
        (
            MEET + TASK + "SLURM_PROCID=1 TORCHELASTIC_RUN_ID=7 RANK=9 WORLD_SIZE=16 LOCAL_RANK=1",
            Place(9, 16, 1, by_torchrun=True),
        ),
    ],
)
def test_process_knows_its_place(launch, words, place):
    launch(words)
    assert find_place() == place
    assert not is_main_process()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RANK=0 WORLD_SIZE=2", "RANK=0 WORLD_SIZE=2), which do not know where to meet"),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=node0", "where to meet"),
        (TASK + "SLURM_PROCID=0", "under srun, one per node), or set MASTER_ADDR and MASTER_PORT"),
        (MPI, "OMPI_COMM_WORLD_SIZE=4), which do not know where to meet"),
        (MEET + "WORLD_SIZE=2", "but RANK is not set: start them with torchrun"),
        (MEET + "WORLD_SIZE=2 SLURM_PROCID=0", "but RANK is not set"),
        (MEET + "RANK=1", "but WORLD_SIZE is not set"),
        (MEET + "SLURM_PROCID=1 SLURM_NTASKS=2", "but SLURM_STEP_NUM_TASKS is not set"),
        (MEET + "RANK=2 WORLD_SIZE=2", "no process 2 of 2"),
        (MEET + "RANK=-1 WORLD_SIZE=2", "no process -1 of 2"),
        (MEET + "RANK=one WORLD_SIZE=2", "RANK=one, which is no number"),
        # `export RANK=$SLURM_PROCID` in a batch script is 0 in every task.
        (
            MEET + TASK + "RANK=0 WORLD_SIZE=4 SLURM_PROCID=2",
            "RANK=0 and SLURM_PROCID=2 differ: unset one",
        ),
    ],
)
def test_process_that_cannot_join_stops_with_one_line(launch, tmp_path, capsys, words, message):
    launch(words)
    with pytest.raises(UsageError, match=re.escape(message)):
        find_place()
    store = make_store(tmp_path / "store")
    assert cli.main(program(store, tmp_path / "run")[3:]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "devices", "index"),
    [
        (MEET + TASK + "SLURM_PROCID=1", 4, 1),
        (MEET + TASK + "SLURM_PROCID=1", 1, 0),  # --gpus-per-task=1 shows each its own
        (MEET + "RANK=5 WORLD_SIZE=8", 4, 1),  # nothing says which one of its machine it is
        ("TORCHELASTIC_RUN_ID=7 RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", 4, 1),
        ("TORCHELASTIC_RUN_ID=7 RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", 1, None),  # two on one
    ],
)
def test_process_takes_the_device_of_its_place(launch, monkeypatch, words, devices, index):
    launch(words)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *_, **__: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    if index is None:
        with pytest.raises(UsageError, match="device cuda:1 of 1: start at most one process per"):
            join_world("auto").__enter__()
        return
    with join_world("auto") as world:
        assert world.device == torch.device("cuda", index)


def test_launchers_may_give_the_rank_as_an_argument(launch, capsys):
    """deepspeed and torch.distributed.launch put it before the others."""
    launch("")
    for word in ("--local_rank=1", "--local-rank=1"):
        assert cli.main([word, "pretrain", "--config", "tiny", "--show"]) == 0
    capsys.readouterr()
    assert cli.main(["--help"]) == 0
    assert "local" not in capsys.readouterr().out


def _run_tasks(tmp_path, tasks, *more):
    """What tasks of the same command say, and their exit codes; `tasks` are their variables."""
    words = program(make_store(tmp_path / "store"), tmp_path / "run", "optim.steps=2", *more)
    inherited = {name: value for name, value in ENVIRONMENT.items() if name not in VARIABLES}
    processes = [
        subprocess.Popen(words, env=inherited | task, stderr=subprocess.PIPE, text=True)
        for task in tasks
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.mark.parametrize("launcher", ["RANK WORLD_SIZE", "SLURM_PROCID SLURM_STEP_NUM_TASKS"])
def test_tasks_of_another_launcher_are_one_run(tmp_path, launcher):
    rank, size = launcher.split()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    codes, said = _run_tasks(tmp_path, [meet | {rank: str(i), size: "2"} for i in range(2)])
    assert codes == [0, 0], said
    assert "on 2 x cpu" in said[0] and not said[1]


def test_task_whose_others_never_come_stops_with_one_line(tmp_path):
    task = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    codes, said = _run_tasks(tmp_path, [task], "run.timeout=1")
    assert codes == [1]
    last = said[0].strip().splitlines()[-1]
    assert "process 1 of 2 did not find the others at 127.0.0.1:9" in last
    assert "Traceback" not in said[0]


def test_second_run_into_a_directory_stops(tmp_path, capsys):
    store = make_store(tmp_path / "store")
    found = []

    def start_another() -> bool:
        if not found:
            for words in ([], ["--resume", "auto"]):
                found.append(cli.main([*program(store, tmp_path / "run")[3:], *words]))
        return False

    result = pretrain(tiny_config(store, tmp_path / "run", "optim.steps=2"), stop=start_another)
    assert found == [1, 1] and result.step == 2
    assert f"another process is writing {tmp_path / 'run'}: wait for it" in capsys.readouterr().err


def test_run_that_ended_while_another_began_is_not_overwritten(tmp_path, monkeypatch):
    """Both found an empty directory; the second came later to its first step."""
    store = make_store(tmp_path / "store")
    config = tiny_config(store, tmp_path / "run", "optim.steps=2")
    run = Loop.run

    def run_late(self, stop, quiet):
        monkeypatch.setattr(Loop, "run", run)
        pretrain(config, quiet=True)
        return run(self, stop, quiet)

    monkeypatch.setattr(Loop, "run", run_late)
    with pytest.raises(VimpacError, match="step-00000002 is later than the beginning"):
        pretrain(config, quiet=True)
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00000002"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            "memory ran out, lower the batch: C",
        ),
        (RuntimeError("enforce fail: can't allocate memory: you"), "memory ran out, lower the b"),
        (RuntimeError("DataLoader worker (pid 7) exited"), "a data-loading process died; if memo"),
        (RuntimeError("[gloo/pair.cc] Connection closed by peer"), "process 0 lost contact with"),
    ],
)
def test_error_that_a_user_can_do_something_about_is_one_line(error, message):
    with pytest.raises(VimpacError, match=message) as found, join_world("cpu"):
        raise error
    assert "\n" not in str(found.value)


def test_any_other_error_stays_as_it_is():
    with pytest.raises(RuntimeError, match="shapes"), join_world("cpu"):
        raise RuntimeError("shapes do not fit")
