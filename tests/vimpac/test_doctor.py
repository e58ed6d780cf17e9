"""`vimpac doctor` reports what is there and, with the reason, what is not."""

import json
import subprocess
import sys

import pytest
import torch

import vimpac_kernels
from vimpac import cli, doctor


@pytest.fixture(scope="module")
def report() -> dict:
    return doctor.report()


def test_every_op_has_a_choice_that_is_available(report):
    for op in vimpac_kernels.OPS:
        found = report["ops"][op]["cpu"]
        assert found["chosen"] in vimpac_kernels.available_impls(op)
        assert found["impls"][found["chosen"]] is None
        assert found["impls"]["reference"] is None


def test_what_cannot_run_has_a_reason(report):
    if torch.cuda.is_available():
        pytest.skip("here the CUDA kernels can run")
    reason = report["ops"]["mask_tokens"]["cpu"]["impls"]["cuda"]
    assert reason and ("not built" in reason or "runs on cuda" in reason)
    assert any("no device" in device for device in report["devices"])


def test_choice_is_what_a_call_takes(report):
    chosen = report["ops"]["mask_tokens"]["cpu"]["chosen"]
    tokens = torch.zeros(1, 2, 4, 4, dtype=torch.int32)
    vimpac_kernels.mask_tokens(tokens, mask_token=1, seed=0, impl=chosen)


def test_decoders_really_decode(report):
    assert report["decoders"]["mpeg4"] == "decodes"


def test_missing_things_are_reported_not_raised(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no_such_package",))
    monkeypatch.setattr(doctor, "CODECS", ("no_such_codec",))
    monkeypatch.setenv("PATH", "")
    found = doctor.report()
    assert found["versions"]["no_such_package"] == "not installed"
    assert found["decoders"]["no_such_codec"].startswith("no (")
    assert found["compilers"] == {"g++": "not on the PATH", "nvcc": "not on the PATH"}


def test_text_and_json_hold_the_same(report, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "report", lambda: report)
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(op in text for op in vimpac_kernels.OPS)
    assert report["versions"]["torch"] in text


def test_runs_as_a_program():
    command = [sys.executable, "-m", "vimpac", "doctor", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["versions"]["torch"] == torch.__version__
