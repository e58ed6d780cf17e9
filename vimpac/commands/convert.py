"""`vimpac convert`: a released checkpoint to a model directory, and back with --back.

Whether it is of VIMPAC or of SimVTP is told by its keys.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimpac.errors import UsageError, VimpacError
from vimpac.files import whole_file
from vimpac.paths import local_path

if TYPE_CHECKING:
    from torch import Tensor

    from vimpac.model.pretraining import Vimpac
    from vimpac.simvtp.config import NetworkConfig
    from vimpac.simvtp.model import SimVTP


_OF_VIMPAC = ("layout", "heads")
_OF_SIMVTP = ("heads", "frames", "size", "decoder_heads", "vocab")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "convert",
        help="convert a released checkpoint",
        description="Converts a released checkpoint to a model directory, exactly.",
        epilog="example: vimpac convert released.pt out/",
    )
    parser.add_argument(
        "source",
        type=local_path,
        help="a released .pt or .safetensors file; with --back a model directory",
    )
    parser.add_argument(
        "out", type=local_path, help="the new directory; with --back the new .pt file"
    )
    parser.add_argument("--back", action="store_true", help="write the released names instead")
    parser.add_argument(
        "--videomae",
        action="store_true",
        help="with --back, of SimVTP: write VideoMAE's names, and nothing of texts",
    )
    parser.add_argument("--layout", help="of VIMPAC (default: T,H|W)")
    parser.add_argument(
        "--heads", type=int, help="attention heads (default: width / 64, as in all released models)"
    )
    parser.add_argument("--frames", type=int, help="of SimVTP (default: 16)")
    parser.add_argument("--size", type=int, help="of SimVTP, pixels (default: 224)")
    parser.add_argument("--decoder-heads", type=int, help="of SimVTP (default: width / 64)")
    parser.add_argument(
        "--vocab",
        type=local_path,
        metavar="FILE",
        help="of SimVTP: BERT's vocab.txt, which the directory then holds, so that it reads texts",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.videomae and not args.back:
        raise UsageError("--videomae needs --back: it says which names are written")
    if args.out.exists():
        raise UsageError(f"{args.out} exists already: remove it or name another one")
    if args.back:
        _given(args, (), "does not go with --back")
        if args.out.suffix == ".safetensors":
            raise UsageError(f"--back writes a .pt file: name it so, not {args.out}")
    elif args.source.is_dir():
        raise UsageError(f"{args.source} is a directory: give --back to convert a model of ours")
    print(f"{args.out}: {_back(args) if args.back else _convert(args)}")
    return 0


def _given(args: argparse.Namespace, legal: Sequence[str], else_: str) -> dict[str, Any]:
    """The options that are given of those that say what no file shows; all must be legal ones."""
    names = dict.fromkeys((*_OF_VIMPAC, *_OF_SIMVTP))
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    for name in given:
        if name not in legal:
            raise UsageError(f"--{name.replace('_', '-')} {else_}")
    return given


def _convert(args: argparse.Namespace) -> str:
    """Writes a model directory; returns what it holds."""
    from vimpac.checkpoints.model_dir import save_model
    from vimpac.checkpoints.state_file import load_tensors
    from vimpac.simvtp.description import save_simvtp
    from vimpac.simvtp.released import is_released, is_videomae, load_released, network_from

    state = load_tensors(args.source)
    if is_videomae(state):
        raise UsageError(
            f"{args.source} is a VideoMAE, which has no words: start from it with "
            f"`vimpac simvtp pretrain init={args.source}`"
        )
    if not is_released(state) and not any(name.startswith("backbone.") for name in state):
        raise VimpacError(
            f"{args.source} is no released checkpoint: it has neither the names of VIMPAC "
            "(backbone.*) nor those of SimVTP (text_embeddings.*)"
        )
    try:
        if not is_released(state):
            given = _given(args, _OF_VIMPAC, f"is of SimVTP, which {args.source} is not")
            model = _read_vimpac(state, **given)
            _warn_of_nan(state, args.source)
            save_model(model, args.out)
            return _describe(model)
        given = _given(args, _OF_SIMVTP, f"is of VIMPAC, {args.source} is a SimVTP")
        vocab = given.pop("vocab", None)
        network = network_from(state, **given)
        other, words = load_released(state, network), _read_words(vocab, network.vocabulary)
        _warn_of_nan(state, args.source)
        save_simvtp(other, args.out, words=words)
        return _describe_simvtp(other)
    except ValueError as error:
        raise VimpacError(f"{args.source}: {error}") from None


def _read_words(vocab: Path | None, size: int) -> dict[str, Any] | None:
    """What `model.json` says of the words."""
    if vocab is None:
        return None
    from vimpac.simvtp.text import TokenizersVocabulary

    words = TokenizersVocabulary.read(vocab)
    if words.size != size:
        raise UsageError(f"--vocab {vocab} has {words.size} words, the checkpoint {size}")
    return json.loads(words.to_json())


def _back(args: argparse.Namespace) -> str:
    """Writes a released checkpoint; returns what it holds."""
    from vimpac.checkpoints.model_dir import load_model
    from vimpac.checkpoints.model_files import read_description
    from vimpac.checkpoints.released import export_released
    from vimpac.simvtp import description, released

    try:
        if read_description(args.source).kind in description.MODELS:
            other, _ = description.read_simvtp(args.source)
            export = released.export_videomae if args.videomae else released.export_released
            state = export(other)
            _warn_of_nan(state, args.source)
            _write_state(state, args.out)
            return _describe_simvtp(other) + ("" if args.videomae else _sizes(other.config))
        if args.videomae:
            raise UsageError(f"--videomae is of SimVTP, {args.source} is a model of VIMPAC")
        model = load_model(args.source)
        state = export_released(model)
        _warn_of_nan(state, args.source)
        _write_state(state, args.out)
    except ValueError as error:
        raise VimpacError(f"{args.source}: {error}") from None
    config = model.config
    return (
        f"{_describe(model)}\nread it again with --layout '{config.layout}' --heads {config.heads}"
    )


def _warn_of_nan(state: Mapping[str, Tensor], source: Path) -> None:
    """What is converted stays as it is, but nobody wants such weights."""
    wrong = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    if wrong:
        print(
            f"warning: {len(wrong)} of {len(state)} tensors of {source} hold numbers that are not "
            f"finite, such as {wrong[0]}",
            file=sys.stderr,
        )


def _describe(model: Vimpac) -> str:
    number, config = sum(p.numel() for p in model.parameters()), model.config
    size = f"{config.layers} layers x {config.width}, {config.layout}, {config.heads} heads"
    return f"{size}, {number:,} parameters"


def _sizes(network: NetworkConfig) -> str:
    """What the keys of a released SimVTP do not show."""
    return (
        f"\nread it again with --frames {network.frames} --size {network.size} --heads "
        f"{network.heads} --decoder-heads {network.decoder_heads}"
    )


def _describe_simvtp(model: SimVTP) -> str:
    number, config = sum(p.numel() for p in model.parameters()), model.config
    size = f"{config.layers} layers x {config.width}, {config.heads} heads"
    return f"SimVTP, {size}, {config.frames} frames of {config.size} pixels, {number:,} parameters"


def _read_vimpac(
    state: Mapping[str, Tensor], layout: str = "T,H|W", heads: int | None = None
) -> Vimpac:
    """Builds the model, with what only the keys show."""
    from vimpac.checkpoints.released import load_released

    embeddings = [v for k, v in state.items() if k.endswith("backbone.embedding.weight")]
    width = embeddings[0].shape[-1] if embeddings and embeddings[0].dim() else 64
    norm = "pre" if any(key.endswith("backbone.ln_post.weight") for key in state) else "post"
    heads = max(width // 64, 1) if heads is None else heads
    return load_released(state, layout=layout, num_heads=heads, norm=norm)


def _write_state(state: Mapping[str, Tensor], path: Path) -> None:
    from vimpac.checkpoints.state_file import save_state

    with whole_file(path) as temporary:
        # Clones: a slice would otherwise be saved with all of the packed tensor.
        save_state({name: tensor.clone() for name, tensor in state.items()}, temporary)
