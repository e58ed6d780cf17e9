"""`vimpac store ACTION`: look at a store, join some, copy one to object storage, convert LMDBs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vimpac.commands.made_store import (
    add_max_skipped_argument,
    check_max_skipped,
    report_store,
)
from vimpac.errors import UsageError
from vimpac.paths import is_url, local_path, on_one_line, path_or_url

if TYPE_CHECKING:
    from vimpac.data.store import TokenStore


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = subparsers.add_parser("store", help="look at, check or convert stores")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="print what a store holds")
    verify = actions.add_parser("verify", help="read every frame and check its checksum")
    for action in (info, verify):
        action.add_argument("store", type=path_or_url, help="a directory or a URL")
        action.add_argument(
            "--cache",
            type=local_path,
            help="where the files of a store with a URL are kept (default: a temporary directory)",
        )
    merge = actions.add_parser("merge", help="join the parts of a store, or several stores")
    merge.add_argument(
        "parts", nargs="+", type=local_path, help="stores, or the folder of the parts: OUT.parts"
    )
    merge.add_argument("--out", required=True, type=local_path, help="where the store is to be")
    merge.add_argument(
        "--allow-missing", action="store_true", help="leave out parts that are not finished"
    )
    add_max_skipped_argument(merge)
    add = actions.add_parser("add", help="append the videos of other stores to a store")
    add.add_argument("store", type=local_path, help="the store that becomes longer")
    add.add_argument("others", nargs="+", type=local_path, help="stores of the same settings")
    upload = actions.add_parser("upload", help="copy a store to object storage")
    upload.add_argument("store", type=local_path, help="a store on this machine")
    upload.add_argument("url", help="where it is to be, such as s3://bucket/store")
    convert = actions.add_parser("convert", help="make a store of the released LMDB databases")
    convert.add_argument("lmdb", nargs="+", type=local_path, help="one directory per variant")
    convert.add_argument("--out", required=True, type=local_path, help="where the store is to be")
    convert.add_argument("--fps", type=float, help="needed where the LMDB has no args.json")


def run(args: argparse.Namespace) -> int:
    """Does the action."""
    actions = {
        "info": _info,
        "verify": _verify,
        "merge": _merge,
        "add": _add,
        "upload": _upload,
        "convert": _convert,
    }
    return actions[args.action](args)


def _convert(args: argparse.Namespace) -> int:
    from vimpac.data.lmdb_store import convert_lmdb

    store = convert_lmdb(args.lmdb, args.out, fps=args.fps)
    print(on_one_line(f"{args.out}: {len(store)} videos, {int(store.frames.sum())} frames"))
    return 0


def _merge(args: argparse.Namespace) -> int:
    from vimpac.data.merge import find_parts, merge_stores

    check_max_skipped(args)
    parts, missing = find_parts(args.parts, allow_missing=args.allow_missing)
    store = merge_stores(parts, args.out, missing=missing)
    for part in missing:
        print(on_one_line(f"vimpac: warning: {part} is left out"), file=sys.stderr)
    report_store(args, args.out, store)
    return 0


def _add(args: argparse.Namespace) -> int:
    from vimpac.data.merge import add_to_store

    store = add_to_store(args.store, args.others)
    print(on_one_line(f"{args.store}: {len(store)} videos, {int(store.frames.sum())} frames"))
    return 0


def _upload(args: argparse.Namespace) -> int:
    from vimpac.data.upload import upload_store

    if not is_url(args.url):
        raise UsageError(f"{args.url} is no URL, such as s3://bucket/store")
    upload_store(args.store, args.url, lambda name: print(name, file=sys.stderr))
    print(on_one_line(f"{args.url}: uploaded"))
    return 0


@contextmanager
def _opened(args: argparse.Namespace) -> Iterator[TokenStore]:
    """The store, whose files stay in the cache if there is one."""
    from vimpac.data.shard_cache import ShardCache
    from vimpac.data.store import TokenStore

    if not is_url(args.store):
        yield TokenStore(args.store, kind=None)
        return
    with tempfile.TemporaryDirectory() as temporary:
        cache = ShardCache(args.cache or Path(temporary), sys.maxsize)
        yield TokenStore(args.store, kind=None, cache=cache)


def _info(args: argparse.Namespace) -> int:
    with _opened(args) as store:
        _print(store)
    return 0


def _print(store: TokenStore) -> None:
    meta, frames = store.meta, int(store.frames.sum())
    weights = f", weights {meta.digest[:12]}" if meta.digest else ""
    compute = f", {meta.compute}" if meta.compute else ""
    print(f"tokenizer  {meta.tokenizer}, {meta.vocab_size} ids{weights}{compute}")
    print(f"frame      {meta.height} x {meta.width} {meta.kind}, {meta.dtype}")
    print(f"variants   {', '.join(meta.variants)}")
    print(f"videos     {len(store)}, {len(store.skipped)} skipped")
    print(f"frames     {frames} at {meta.fps:g} per second, {frames / meta.fps:.0f} s")
    print(f"size       {sum(store.shard_bytes) / 1e6:.1f} MB")
    for part in store.missing_parts:
        print(on_one_line(f"missing    {part}"))
    for name, note in store.notes:
        print(on_one_line(f"note       {name}: {note}"))
    for name, reason in store.skipped:
        print(on_one_line(f"skipped    {name}: {reason}"))


def _verify(args: argparse.Namespace) -> int:
    with _opened(args) as store:
        problems = [problem for problem in store.verify() if problem]
        for problem in problems:
            print(on_one_line(f"vimpac: {problem}"), file=sys.stderr)
        print(
            on_one_line(
                f"{args.store}: {len(store) - len(problems)} of {len(store)} videos are intact"
            )
        )
    return 1 if problems else 0
