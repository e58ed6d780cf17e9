"""`vimpac convert`: a released checkpoint to a model directory, and back with --back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimpac.errors import UsageError, VimpacError
from vimpac.files import whole_file
from vimpac.paths import local_path

if TYPE_CHECKING:
    from torch import Tensor


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "convert",
        help="convert a released checkpoint",
        description="Converts a released checkpoint to a model directory, exactly.",
        epilog="example: vimpac convert released.pt out/",
    )
    parser.add_argument(
        "source", type=local_path, help="a released .pt file; with --back a model directory"
    )
    parser.add_argument(
        "out", type=local_path, help="the new directory; with --back the new .pt file"
    )
    parser.add_argument("--back", action="store_true", help="write the released names instead")
    parser.add_argument("--layout", default="T,H|W", help="as trained (default: %(default)s)")
    parser.add_argument(
        "--heads", type=int, help="attention heads (default: width / 64, as in all released models)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from vimpac.checkpoints.model_dir import load_model, save_model

    if args.out.exists():
        raise UsageError(f"{args.out} exists already: remove it or name another one")
    if args.back:
        model = load_model(args.source)
        try:
            _write_released(model, args.out)
        except ValueError as error:
            raise VimpacError(f"{args.source}: {error}") from None
    else:
        model = _read_released(args)
        save_model(model, args.out)
    number = sum(p.numel() for p in model.parameters())
    config = model.config
    size = f"{config.layers} layers x {config.width}, {config.layout}, {config.heads} heads"
    print(f"{args.out}: {size}, {number:,} parameters")
    if args.back:
        print(f"read it again with --layout '{config.layout}' --heads {config.heads}")
    return 0


def _read_released(args: argparse.Namespace) -> Any:
    """Reads the file without running code from it, and finds what only its keys show."""
    from vimpac.checkpoints.released import load_released
    from vimpac.checkpoints.state_file import load_state

    content = load_state(args.source)
    state = _find_state(content, args.source)
    embeddings = [v for k, v in state.items() if k.endswith("backbone.embedding.weight")]
    width = embeddings[0].shape[1] if embeddings else 64
    norm = "pre" if any(key.endswith("backbone.ln_post.weight") for key in state) else "post"
    heads = max(width // 64, 1) if args.heads is None else args.heads
    try:
        return load_released(state, layout=args.layout, num_heads=heads, norm=norm)
    except ValueError as error:
        raise VimpacError(f"{args.source}: {error}") from None


def _find_state(content: object, path: Path) -> Mapping[str, Tensor]:
    """The state dict: the file itself, or its entry `model` or `state_dict`."""
    import torch

    inner = []
    if isinstance(content, Mapping):
        inner = [content.get(key) for key in ("model", "state_dict")]
    for candidate in (content, *inner):
        if isinstance(candidate, Mapping) and candidate:
            if all(isinstance(value, torch.Tensor) for value in candidate.values()):
                return candidate
    raise VimpacError(f"{path} holds no state dict (names -> tensors)")


def _write_released(model: Any, path: Path) -> None:
    import torch

    from vimpac.checkpoints.released import export_released

    with whole_file(path) as temporary:
        # Clones: a slice would otherwise be saved with all of the packed tensor.
        state = {k: v.clone() for k, v in export_released(model).items()}
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # of a full disk, in PyTorch's words
            raise VimpacError(f"cannot write {path}: {error}") from None
