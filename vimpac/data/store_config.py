"""The settings by which a run or a test finds its token stores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vimpac.data.shard_cache import ShardCache
from vimpac.settings import PATH, POSITIVE, setting


@dataclasses.dataclass
class StoreConfig:
    """Which token stores are read, and from where."""

    data: str = setting(
        "", doc="a token store (see `vimpac tokenize`), its URL (s3://...), or several: a,b"
    )
    cache: str = setting("", PATH, "directory on a local disk for the files of stores with a URL")
    cache_gb: float = setting(100.0, POSITIVE, "of shards that are kept there")

    @property
    def shard_cache(self) -> ShardCache | None:
        """Where the shards of stores in object storage are kept."""
        return ShardCache(Path(self.cache), int(self.cache_gb * 1e9)) if self.cache else None
