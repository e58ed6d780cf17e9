"""`vimpac store info|verify|convert`: what is in a token store, is it intact, make one of LMDBs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vimpac.paths import local_path, on_one_line


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = subparsers.add_parser("store", help="look at, check or convert stores")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="print what a store holds")
    verify = actions.add_parser("verify", help="read every frame and check its checksum")
    for action in (info, verify):
        action.add_argument("store", type=local_path)
    convert = actions.add_parser("convert", help="make a store of the released LMDB databases")
    convert.add_argument("lmdb", nargs="+", type=local_path, help="one directory per variant")
    convert.add_argument("--out", required=True, type=local_path, help="where the store is to be")
    convert.add_argument("--fps", type=float, help="needed where the LMDB has no args.json")


def run(args: argparse.Namespace) -> int:
    """Does the action."""
    if args.action == "convert":
        from vimpac.data.lmdb_store import convert_lmdb

        store = convert_lmdb(args.lmdb, args.out, fps=args.fps)
        print(f"{args.out}: {len(store)} videos, {int(store.frames.sum())} frames")
        return 0
    return {"info": _info, "verify": _verify}[args.action](args.store)


def _info(path: Path) -> int:
    from vimpac.data.store import TokenStore

    store = TokenStore(path, kind=None)
    meta, frames = store.meta, int(store.frames.sum())
    weights = f", weights {meta.digest[:12]}" if meta.digest else ""
    print(f"tokenizer  {meta.tokenizer}, {meta.vocab_size} ids{weights}")
    print(f"frame      {meta.height} x {meta.width} {meta.kind}, {meta.dtype}")
    print(f"variants   {', '.join(meta.variants)}")
    print(f"videos     {len(store)}, {len(store.skipped)} skipped")
    print(f"frames     {frames} at {meta.fps:g} per second, {frames / meta.fps:.0f} s")
    print(f"size       {sum(f.stat().st_size for f in path.iterdir()) / 1e6:.1f} MB")
    for name, note in store.notes:
        print(on_one_line(f"note       {name}: {note}"))
    for name, reason in store.skipped:
        print(on_one_line(f"skipped    {name}: {reason}"))
    return 0


def _verify(path: Path) -> int:
    from vimpac.data.store import TokenStore

    store = TokenStore(path, kind=None)
    problems = [problem for problem in store.verify() if problem]
    for problem in problems:
        print(on_one_line(f"vimpac: {problem}"), file=sys.stderr)
    print(f"{path}: {len(store) - len(problems)} of {len(store)} videos are intact")
    return 1 if problems else 0
