"""Whether a run goes on with the videos that it began with, in the same order."""

from __future__ import annotations

from vimpac.data.joined_store import JoinedStore, Store
from vimpac.errors import VimpacError
from vimpac.train.batches import open_store


def source_of(store: Store) -> dict[str, str]:
    """What tells the videos of a store from others: their names' checksum, and where they are."""
    stores = store.stores if isinstance(store, JoinedStore) else [store]
    names = " ".join(f"{one.names_crc32:08x}" for one in stores)
    return {"names": names, "path": str(store.path)}


def check_same_videos(was: dict[str, str], store: Store) -> None:
    """Raises ValueError if a run was on other videos; it names the first that differs.

    The same videos divided among stores in another way are others: they are drawn in another order.

    Args:
        was: `source_of` the store of then; empty in a checkpoint that does not say it.
        store: That of now.
    """
    if not was or was["names"] == source_of(store)["names"]:
        return
    line = f"its videos are not those of {store.path}"
    try:
        other = open_store(was["path"])
        is_as_it_was = source_of(other)["names"] == was["names"]
    except (VimpacError, OSError):
        is_as_it_was = False
    if not is_as_it_was:
        raise ValueError(f"{line}: their names differ")
    ours, theirs = ([one.name(i) for i in range(len(one))] for one in (store, other))
    for place, (mine, their) in enumerate(zip(ours, theirs, strict=False)):
        if mine != their:
            raise ValueError(f"{line}: video {place} is '{mine}', in {other.path} '{their}'")
    both = min(len(ours), len(theirs))
    if len(ours) != len(theirs):
        where, more = (store.path, ours) if len(ours) > both else (other.path, theirs)
        line += f": {len(ours)}, not {len(theirs)}; {where} goes on with '{more[both]}'"
    else:
        line = (
            f"its videos are those of {store.path}, but divided among stores in another way: give "
            f"data={other.path}"
        )
    raise ValueError(line)
