"""State dicts of others: what is no model is one line that names the file and the key."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vimpac import Vimpac, cli, export_released, load_model, load_released, simvtp
from vimpac.checkpoints import model_files
from vimpac.checkpoints.state_file import load_tensors, save_state
from vimpac.errors import UsageError, VimpacError
from vimpac.simvtp.initial import fill_from

SIMVTP = ("--frames", "8", "--size", "48", "--heads", "4", "--decoder-heads", "2")


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    """A released checkpoint of VIMPAC and one of SimVTP."""
    torch.manual_seed(0)
    video = simvtp.SimVTP.from_preset("tiny", vocabulary=20, layers=1)
    return {
        "vimpac": export_released(Vimpac.from_preset("tiny", layers=1, grid=(2, 3, 4))),
        "simvtp": simvtp.export_released(video),
    }


KEYS = {  # of which sizes are read, and others
    "vimpac": (
        "backbone.embedding.weight",
        "backbone.transformer.resblocks.0.attention_blocks.0.attentions.0.attention.query.weight",
        "backbone.transformer.resblocks.0.attention_blocks.0.attentions.0.attention.key.bias",
        "backbone.positional_embedding.temporal_pos_embedding",
        "cls_head.mlp.linear_0.weight",
        "mlm_head.bias",
    ),
    "simvtp": (
        "encoder.patch_embed.proj.weight",
        "encoder_to_decoder.weight",
        "text_embeddings.word_embeddings.weight",
        "text_embeddings.position_embeddings.weight",
        "encoder.blocks.0.mlp.fc1.weight",
        "text_cls.bias",
    ),
}
WRONG = {
    "0-d": lambda x: torch.tensor(3.0),
    "1-d": lambda x: torch.ones(3),
    "6-d": lambda x: torch.ones(1, 1, 1, 1, 1, 1),
    "int": lambda x: x.int(),
    "bool": lambda x: x.bool(),
    "complex": lambda x: x.to(torch.complex64),
    "fp8": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "number": lambda x: 3.0,
    "none": lambda x: None,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", KEYS)
def test_tensor_that_is_no_parameter_is_named(states, tmp_path, capsys, kind, wrong):
    for number, key in enumerate(KEYS[kind]):
        file = tmp_path / f"{number}.pt"
        torch.save({**states[kind], key: WRONG[wrong](states[kind][key])}, file)
        words = SIMVTP if kind == "simvtp" else ("--heads", "4")
        assert cli.main(["convert", str(file), str(tmp_path / "out"), *words]) == 1
        error = capsys.readouterr().err
        assert f"vimpac: {file}: " in error and repr(key) in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["int", "none", "sparse"])
def test_same_for_state_dicts_in_memory(states, wrong):
    for kind, key in (("vimpac", KEYS["vimpac"][-1]), ("simvtp", KEYS["simvtp"][-1])):
        state = {**states[kind], key: WRONG[wrong](states[kind][key])}
        with pytest.raises(ValueError, match=key):
            if kind == "vimpac":
                load_released(state, layout="T,H|W", num_heads=4)
            else:
                simvtp.load_released(state, simvtp.NetworkConfig())


def test_absent_size_of_a_released_model_is_named(states):
    with pytest.raises(ValueError, match="config lacks the size 'width'"):
        simvtp.load_released(states["simvtp"], {"size": 48})
    with pytest.raises(ValueError, match="state_dict must map names to tensors, got NoneType"):
        simvtp.load_released(None, simvtp.NetworkConfig())


@pytest.mark.parametrize("name", [1, ("a",), None])
def test_name_that_is_no_text_is_refused_everywhere(states, tmp_path, capsys, name):
    file = tmp_path / "a.pt"
    torch.save({"model": {**states["simvtp"], name: torch.ones(3)}}, file)
    assert cli.main(["convert", str(file), str(tmp_path / "out")]) == 1
    assert f"{file}: the name {name!r} in the state dict is no text" in capsys.readouterr().err
    for init, init_text in ((str(file), ""), ("", str(file))):
        with pytest.raises(VimpacError, match="is no text"):
            [*fill_from(simvtp.SimVTP.from_preset("tiny"), None, init, init_text)]


@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_state_dict_is_found_in_what_training_code_saves(states, tmp_path, capsys, key):
    torch.save({key: states["vimpac"], "epoch": 3}, tmp_path / "a.pt")
    assert cli.main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "out")]) == 0
    assert load_model(tmp_path / "out").config.layers == 1
    torch.save({key: states["simvtp"], "epoch": 3}, tmp_path / "b.pt")
    model = simvtp.SimVTP.from_preset("tiny", vocabulary=20, layers=1)
    assert not [*fill_from(model, None, str(tmp_path / "b.pt"), "")]


def test_safetensors_convert_as_well(states, tmp_path):
    save_file(states["simvtp"], tmp_path / "a.safetensors")
    words = str(tmp_path / "a.safetensors"), str(tmp_path / "out"), *SIMVTP
    assert cli.main(["convert", *words]) == 0
    found = simvtp.export_released(simvtp.load_simvtp(tmp_path / "out"))
    assert all(torch.equal(found[name], tensor) for name, tensor in states["simvtp"].items())


@pytest.mark.parametrize("where", ["init", "init_text"])
def test_damaged_safetensors_are_one_line(tmp_path, where):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"hello, this is no safetensors")
    with pytest.raises(VimpacError, match=r"a\.safetensors is damaged"):
        files = {"init": "", "init_text": "", where: str(file)}
        [*fill_from(simvtp.SimVTP.from_preset("tiny"), None, **files)]


@pytest.mark.parametrize("content", [argparse.Namespace(a=1), os.mkdir])
def test_foreign_class_is_named_and_not_unpickled(tmp_path, content):
    torch.save({"model": {"a": torch.ones(1)}, "args": content}, tmp_path / "a.pt")
    name = "argparse.Namespace" if content is not os.mkdir else "posix.mkdir"
    with pytest.raises(VimpacError, match=rf"numbers \({name}\), .* save its tensors alone"):
        load_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("size", [10, 100_000])
def test_full_disk_is_said_in_the_words_of_the_system(size):
    with pytest.raises(OSError, match="No space left"):
        save_state({str(i): torch.ones(size) for i in range(5)}, Path("/dev/full"))


def test_full_disk_in_the_words_of_safetensors_is_one_line(states, tmp_path, capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model_files, "save_file", fail)
    for kind, words in (("vimpac", ("--heads", "4")), ("simvtp", SIMVTP)):
        torch.save(states[kind], tmp_path / "a.pt")
        assert cli.main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "out"), *words]) == 1
        assert f"cannot write {tmp_path / 'out'}: I/O error: No space" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("simvtp", ("--layout", "THW"), "--layout is of VIMPAC, {file} is a SimVTP"),
        ("vimpac", ("--frames", "8"), "--frames is of SimVTP, which {file} is not"),
        ("vimpac", ("--decoder-heads", "2"), "--decoder-heads is of SimVTP"),
        ("simvtp", ("--back", "--frames", "8"), "--frames does not go with --back"),
        ("simvtp", ("--back", "--vocab", "a"), "--vocab does not go with --back"),
        ("simvtp", ("--back", "--heads", "0"), "--heads does not go with --back"),
        ("simvtp", (*SIMVTP, "--heads", "0"), "{file}: heads=0 must lie in"),
        ("simvtp", (*SIMVTP, "--decoder-heads", "0"), "{file}: decoder_heads=0 must lie in"),
        ("vimpac", ("--heads", "0"), "{file}: num_heads=0 does not divide"),
        ("simvtp", (*SIMVTP, "--size", "65536"), "{file}: frames=8 and size=65536 make"),
        (
            "simvtp",
            ("--back",),
            "{file} is a file, no model directory: `vimpac convert",
        ),
    ],
)
def test_option_that_does_not_apply_is_named(states, tmp_path, capsys, kind, words, message):
    file = tmp_path / "a.pt"
    torch.save(states[kind], file)
    assert cli.main(["convert", str(file), str(tmp_path / "out"), *words]) in (1, 2)
    assert message.format(file=file) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(("kind", "words"), [("simvtp", SIMVTP), ("vimpac", ("--heads", "4"))])
def test_numbers_that_are_not_finite_are_converted_and_counted(
    states, tmp_path, capsys, kind, words
):
    key = KEYS[kind][0]
    shape = states[kind][key].shape  # and of a copy that is tied to it
    state = {n: x * torch.nan if x.shape == shape else x for n, x in states[kind].items()}
    file, out, back = (str(tmp_path / name) for name in ("a.pt", "out", "back.pt"))
    torch.save(state, file)
    assert cli.main(["convert", file, out, *words]) == 0
    said = f"of {len(state)} tensors of {file} hold numbers that are not finite, such as "
    assert said in capsys.readouterr().err
    assert cli.main(["convert", out, back, "--back"]) == 0
    assert f"tensors of {out} hold numbers that are not finite" in capsys.readouterr().err
    assert bool(torch.load(back)[key].isnan().all())
    assert cli.main(["convert", out, str(tmp_path / "b.safetensors"), "--back"]) == 2
    assert "--back writes a .pt file" in capsys.readouterr().err
    assert cli.main(["convert", out, str(tmp_path / "b")]) == 2
    assert f"{out} is a directory: give --back" in capsys.readouterr().err


def test_file_in_the_place_of_a_model_directory_is_named(tmp_path, capsys):
    model = simvtp.SimVTP.from_preset("tiny", vocabulary=20, layers=1)
    simvtp.save_simvtp(model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    with pytest.raises(UsageError, match=rf"no model directory: give {tmp_path}/model$"):
        simvtp.load_simvtp(weights)
    assert cli.main(["convert", str(weights), str(tmp_path / "out"), *SIMVTP]) == 1
    assert "is no released checkpoint: it has neither the names of" in capsys.readouterr().err
