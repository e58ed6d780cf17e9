"""Videos to a store of tokens or frames, in workers or here.

Results are consumed in the order of the videos, whatever the workers' speed, and the writer
journals each, so a killed run continues and ends in the same bytes as one that was not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

from vimpac.data.encoder import SharedEncoder
from vimpac.data.journal import Tries
from vimpac.data.stages import Throughput
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta, difference, partial_path
from vimpac.data.tokenize_video import make_decoder, make_work
from vimpac.data.tokenize_workers import Outcome, outcomes
from vimpac.data.variants import Variant
from vimpac.data.writer import is_complete
from vimpac.errors import UsageError
from vimpac.tokenizers import Tokenizer, device_batch, get_tokenizer

Video = tuple[str, Path]  # its name in the store, its file


@dataclasses.dataclass(frozen=True)
class TokenizeSettings:
    """How videos become tokens.

    Attributes:
        fps: Frames per second of video time.
        size: Side of the square variants in pixels, divisible by the tokenizer's patch.
        variants: What is made of every frame.
        tokenizer: Name of the tokenizer.
        weights: Its weights, or None.
        device: Where it computes.
        dtype: Of its arithmetic.
    """

    fps: Fraction = Fraction(2)
    size: int = 128
    variants: tuple[Variant, ...] = (Variant(),)
    tokenizer: str = "patch"
    weights: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def make_tokenizer(self) -> Tokenizer:
        """Makes the tokenizer, checking the size against its patch."""
        tokenizer = get_tokenizer(
            self.tokenizer, weights=self.weights, device=self.device, dtype=self.dtype
        )
        if self.size < 1 or self.size % tokenizer.patch or self.fps <= 0:
            raise UsageError(
                f"the size must be a multiple of {tokenizer.patch} and fps positive, "
                f"not size {self.size} and fps {float(self.fps):g}"
            )
        return tokenizer

    def meta(self, tokenizer: Tokenizer) -> StoreMeta:
        """What a store made so says of itself."""
        side = self.size // tokenizer.patch
        return StoreMeta(
            tokenizer=tokenizer.name,
            vocab_size=tokenizer.vocab_size,
            height=side,
            width=side,
            fps=float(self.fps),
            variants=tuple(map(str, self.variants)),
            digest=tokenizer.digest,
            kind="pixels" if tokenizer.name == "pixels" else "tokens",
            compute=tokenizer.compute,
        )


def tokenized(
    videos: Sequence[Video],
    settings: TokenizeSettings,
    tokenizer: Tokenizer,
    *,
    workers: int,
    timeout: float,
    record: Tries,
    throughput: Throughput | None = None,
) -> Generator[Outcome]:
    """Tokenises videos, in worker processes or here.

    On a CPU each worker encodes what it decodes. On another device workers only decode, and this
    process encodes, in batches across videos.

    Args:
        videos: (name, path).
        settings: How.
        tokenizer: From `settings`.
        workers: Processes; 0 works in this one, which a video that crashes or hangs can end.
        timeout: Seconds without progress after which a worker is ended.
        record: Of what was begun and has not ended.
        throughput: Takes the time of every stage.

    Yields:
        What became of each video, in order.

    Raises:
        VimpacError: The device failed, or no worker can start.
    """
    encoder, make = None, functools.partial(make_work, settings, None if workers else tokenizer)
    if workers and settings.device != "cpu":
        encoder = SharedEncoder(tokenizer, device_batch(settings.size))
        make = functools.partial(make_decoder, settings)
    results = outcomes(
        videos, make, workers=workers, timeout=timeout, record=record, encoder=encoder
    )
    with closing(results):
        for outcome in results:
            if throughput is not None:
                throughput.add(outcome.seconds)
                if encoder is not None:
                    throughput.own.seconds["encode"] = encoder.seconds
            yield outcome


def tokenize_videos(
    videos: Sequence[Video],
    out: Path,
    settings: TokenizeSettings,
    *,
    workers: int = 0,
    timeout: float = 300.0,
    may_be_empty: bool = False,
    report: Callable[[int, str], None] = lambda done, line: None,
    speed: Callable[[str], object] = lambda line: None,
) -> TokenStore:
    """Makes a store of videos, or continues the unfinished one at `out`.

    Args:
        videos: (name, path) in the order of the store.
        out: Where the store is to be.
        settings: How.
        workers: Processes; 0 works in this one, which a video that crashes or hangs can end.
        timeout: Seconds without progress after which a worker is ended.
        may_be_empty: Whether the store is finished even if no video could be read.
        report: Called after every video with the number of videos done, and a line about what is
            wrong with this one or "".
        speed: Called at the end with a line on how fast it was, and where the time went.

    Returns:
        The finished store; its `skipped` are the videos that could not be read, its `notes` what
        is wrong with others.

    Raises:
        UsageError: `out` holds something else, or was begun otherwise.
        VimpacError: No video could be read, or the device failed.
    """
    tokenizer = settings.make_tokenizer()
    meta, names = settings.meta(tokenizer), [name for name, _ in videos]
    if is_complete(out):
        store = TokenStore(out, kind=None)
        held = [store.name(i) for i in range(len(store))] + [name for name, _ in store.skipped]
        problem = difference(store.meta.to_dict(), meta.to_dict()) or _other_video(held, names)
        if problem:
            raise UsageError(f"{out} is another store ({problem}): name another output")
        report(len(names), "")
        return store
    with TokenStoreWriter(out, meta) as writer:
        begun = [entry.name for entry in writer.entries]
        _check_continues(out, begun, names)
        report(len(begun), "")
        throughput = Throughput(workers)
        results = tokenized(
            videos[len(begun) :],
            settings,
            tokenizer,
            workers=workers,
            timeout=timeout,
            record=writer.journal,
            throughput=throughput,
        )
        with closing(results):
            for name, outcome in zip(names[len(begun) :], results, strict=True):
                throughput.own.lap("wait")
                line = _write(writer, name, outcome)
                throughput.own.lap("write")
                throughput.frames += 0 if outcome.tokens is None else outcome.tokens.shape[1]
                report(len(writer.entries), line)
        throughput.own.lap("wait")
        writer.finish(may_be_empty=may_be_empty)
        throughput.own.lap("write")
    if throughput.frames:
        speed(str(throughput))
    return TokenStore(out, kind=None)


def _check_continues(out: Path, begun: Sequence[str], names: Sequence[str]) -> None:
    """Raises unless the videos of an unfinished store are the first of those given now."""
    if names[: len(begun)] != begun:
        first = next(i for i, name in enumerate(begun) if names[i : i + 1] != [name])
        here = f"'{names[first]}'" if first < len(names) else "the end"
        raise UsageError(
            f"{partial_path(out)} was begun with other videos (where it has '{begun[first]}' "
            f"there is {here}): give the same, or remove it"
        )


def _write(writer: TokenStoreWriter, name: str, outcome: Outcome) -> str:
    """Writes a video; a line on what is wrong with it, or ""."""
    tokens, text, _ = outcome
    if tokens is None:
        writer.skip(name, text)
        return f"skipped {name}: {text}"
    writer.add(name, tokens, note=text)
    return f"{name}: {text}" if text else ""


def _other_video(held: Sequence[str], names: Sequence[str]) -> str | None:
    """The first video of a store that was not given, or that was given and is not there."""
    for whose, some, others in (("it has", held, {*names}), ("it lacks", names, {*held})):
        for name in some:
            if name not in others:
                return f"{whose} '{name}'"
    return None
