"""Worker processes start without what they do not need."""

import os
import subprocess
import sys
from pathlib import Path

from tests.vimpac.videos import write_video
from vimpac.data.workers import Workers

ROOT = Path(__file__).parents[2]


def _count_threads(argument, alive, send):
    return len(os.listdir("/proc/self/task"))


def _make_counter():
    return _count_threads


def test_script_without_a_guard_of_its_main_part_works(tmp_path):
    """Python's own way of starting workers would run such a script again in each of them."""
    write_video(tmp_path / "a.mp4", range(0, 1000, 100))
    script = tmp_path / "script.py"
    script.write_text(
        "from vimpac.cli import main\n"
        "print('runs')\n"
        "assert main(['tokenize', 'a.mp4', '--out', 'store', '--workers', '2']) == 0\n"
    )
    command = [sys.executable, str(script)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("runs") == 1


def test_workers_multiply_with_one_thread_each(monkeypatch):
    """This one, and two that watch; those of OpenBLAS would only wait for the other workers."""
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    workers = Workers(_make_counter, 1, 60.0)
    try:
        assert workers.start(None)() == 3
    finally:
        workers.close()
    assert not {*names} & {*os.environ}


def test_no_process_of_the_built_in_tokenizer_imports_torch(tmp_path):
    """Torch takes longer to import than the rest of a process does to start."""
    write_video(tmp_path / "a.mp4", range(0, 1000, 100))
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    command = [sys.executable, "-m", "vimpac", "tokenize", "a.mp4", "--out", "store"]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    run = subprocess.run([*command, "--workers=1"], cwd=tmp_path, env=env, capture_output=True)
    assert run.returncode == 0, run.stderr
    run = subprocess.run(
        [*command, "--tokenizer=dalle"], cwd=tmp_path, env=env, text=True, capture_output=True
    )
    assert run.returncode == 1 and "torch was imported" in run.stderr
