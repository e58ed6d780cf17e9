"""`vimpac convert`: exact both ways, and one line for what cannot be converted."""

import pytest
import torch

from vimpac import Vimpac, cli, export_released, load_model, save_model


@pytest.fixture
def model() -> Vimpac:
    torch.manual_seed(0)
    return Vimpac.from_preset("tiny", heads=2, head_dim=64, grid=(2, 3, 4))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}])
def test_convert_and_back_is_exact(model, tmp_path, wrap):
    released = export_released(model)
    torch.save(wrap(released), tmp_path / "released.pt")
    assert cli.main(["convert", str(tmp_path / "released.pt"), str(tmp_path / "out")]) == 0
    loaded = load_model(tmp_path / "out")
    assert loaded.config == model.config
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert cli.main(["convert", "--back", str(tmp_path / "out"), str(tmp_path / "back.pt")]) == 0
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == released.keys()
    assert all(torch.equal(back[k], released[k]) for k in back)
    assert {p.name for p in tmp_path.iterdir()} == {"released.pt", "out", "back.pt"}


class _Arbitrary:
    def __reduce__(self):
        return print, ("code from the file ran",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_Arbitrary(), "holds more than plain tensors"),
        ({"epoch": 3}, "no state dict"),
        ({"backbone.other": torch.zeros(1)}, "lacks 'backbone."),
    ],
    ids=["pickled-object", "no-tensors", "other-model"],
)
def test_unusable_file_is_one_line(tmp_path, capfd, content, words):
    torch.save(content, tmp_path / "released.pt")
    assert cli.main(["convert", str(tmp_path / "released.pt"), str(tmp_path / "out")]) == 1
    output = capfd.readouterr()
    assert words in output.err and output.err.count("\n") == 1
    assert "code from the file ran" not in output.out
    assert [p.name for p in tmp_path.iterdir()] == ["released.pt"]


def test_absent_file_is_one_line(tmp_path, capfd):
    assert cli.main(["convert", str(tmp_path / "no.pt"), str(tmp_path / "out")]) == 1
    assert "no.pt: No such file" in capfd.readouterr().err


def test_directory_without_a_model_is_one_line(tmp_path, capfd):
    (tmp_path / "model.safetensors").touch()
    assert cli.main(["convert", "--back", str(tmp_path), str(tmp_path / "b.pt")]) == 2
    assert "is no model: it has no model.json\n" in capfd.readouterr().err


def test_nothing_is_overwritten(model, tmp_path, capfd):
    save_model(model, tmp_path / "out")
    assert cli.main(["convert", str(tmp_path / "released.pt"), str(tmp_path / "out")]) == 2
    assert "exists already" in capfd.readouterr().err


def test_damaged_model_is_one_line(model, tmp_path, capfd):
    save_model(model, tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert cli.main(["convert", "--back", str(tmp_path / "out"), str(tmp_path / "b.pt")]) == 1
    assert "is damaged" in capfd.readouterr().err
