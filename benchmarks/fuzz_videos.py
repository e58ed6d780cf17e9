"""Damaged and odd videos in one run of `vimpac tokenize`: each is tokenised or listed.

    python benchmarks/fuzz_videos.py [--videos 300] [--seed 0] [--keep FOLDER]

Makes videos in every container that FFmpeg writes, with odd sizes, few frames, streams in any order
and timestamps that jump, then damages most of the files: cut, bytes flipped, packets dropped,
swapped or repeated, two files joined. Prints what became of them, and fails if a video is neither
in the store nor among the skipped, or if a traceback is printed.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from vimpac.data.store import TokenStore

CODECS = (  # that a container may hold, the commonest first
    "libx264 mpeg4 mpeg2video mpeg1video libvpx mjpeg flv dvvideo gif rawvideo rv10 h261 h263 "
    "apng libx265"
).split()
MORE = (  # codecs that are common in these containers, or that only these take
    ("film_cpk", "cinepak"),
    ("roq", "roqvideo"),
    ("mp4", "mpeg4"),
    ("matroska", "mpeg4"),
    ("matroska", "libvpx-vp9"),
    ("avi", "mpeg4"),
    ("asf", "wmv2"),
    ("flv", "flv"),
    ("mpegts", "mpeg2video"),
)
NO_VIDEOS = frozenset(  # written by hand, streamed, or checksums of a video
    "avif crc ffmetadata framecrc framehash framemd5 hash ico image2pipe md5 null rtp_mpegts rtp "
    "streamhash uncodedframecrc webp webm_dash_manifest mkvtimestamp_v2 fits".split()
)
SIZES = (
    (64, 48),
    (48, 64),
    (64, 64),
    (176, 144),
    (16, 16),
    (66, 34),
    (1024, 16),
    (2, 64),
    (720, 576),
)
UNSURE = ("asf_stream", "data", "rawvideo")  # FFmpeg itself does not read all that it writes so
LENGTHS = (1, 2, 3, 25, 50)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a video is made."""

    format: str
    codec: str
    suffix: str
    size: tuple[int, int]
    frames: int
    stamps: str
    layout: str  # of the streams


STAMPS: dict[str, Callable[[int], int | None]] = {  # frame number -> timestamp, 25 per second
    "steady": lambda i: i,
    "late": lambda i: i + 10**6,
    "restart": lambda i: i % 10,
    "gap": lambda i: i + 10_000 * (i > 10),
    "away": lambda i: i + 10**8 * (i > 10),
    "still": lambda i: 0,
    "absent": lambda i: None,
    "slow": lambda i: 250 * i,
    "back": lambda i: 1000 - i,
}
LAYOUTS = ("video", "sound first", "two videos")


def containers() -> list[tuple[str, str, str]]:
    """(format, codec, suffix) of everything that FFmpeg writes as one file with a video."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(av.formats_available - NO_VIDEOS):
            try:
                format = av.format.ContainerFormat(name, "w")
            except ValueError:
                continue  # read only
            if format.no_file:
                continue
            suffix = min(sorted(format.extensions), default=name, key=len)
            more = [codec for container, codec in MORE if container == name]
            works = (codec for codec in CODECS if _can_write(name, codec, suffix, folder))
            found += [(name, codec, suffix) for codec in [*itertools.islice(works, 1), *more]]
    return found


def _can_write(name: str, codec: str, suffix: str, folder: str) -> bool:
    sizes = ((176, 144), (720, 576))  # H.261 takes the first, DV the second
    recipes = (Recipe(name, codec, suffix, size, 3, "steady", "video") for size in sizes)
    return any(write(recipe, Path(folder) / f"v.{suffix}") for recipe in recipes)


def write(recipe: Recipe, path: Path) -> bool:
    """Writes a video; whether FFmpeg can."""
    try:
        with av.open(str(path), "w", format=recipe.format) as container:
            _write_streams(recipe, container)
    except (FFmpegError, ValueError, TypeError, KeyError):
        return False
    return path.is_file() and path.stat().st_size > 0


def _write_streams(recipe: Recipe, container: av.container.OutputContainer) -> None:
    sound = None
    if recipe.layout == "sound first":
        sound = container.add_stream("pcm_s16le", rate=8000)
    streams = []
    for k in range(2 if recipe.layout == "two videos" else 1):
        stream = container.add_stream(recipe.codec, rate=25)
        if recipe.codec == "libx265":
            stream.options = {"x265-params": "log-level=none"}
        stream.width, stream.height = recipe.size if k == 0 else (32, 32)
        formats = stream.codec_context.codec.video_formats or []
        names = [format.name for format in formats]
        stream.pix_fmt = "yuv420p" if not names or "yuv420p" in names else names[0]
        streams.append(stream)
    if sound is not None:
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
    noise = np.random.default_rng(0).integers(0, 256, (600, 1300, 3), np.uint8)
    for i in range(recipe.frames):
        stamp = STAMPS[recipe.stamps](i)
        for stream in streams:
            image = noise[i : i + stream.height, i : i + stream.width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            for packet in stream.encode(frame):
                if recipe.stamps != "steady":
                    packet.pts = packet.dts = stamp
                container.mux(packet)
    for stream in streams:
        container.mux(stream.encode())


def damage(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A kind of damage, and the data with it."""
    size = len(data)
    kind = rng.choice(
        "none none none cut head-cut flip flip-head drop swap repeat zero join".split()
    )
    bytes_ = bytearray(data)
    if kind == "cut":
        bytes_ = bytes_[: rng.randrange(size)]
    elif kind == "head-cut":
        bytes_ = bytes_[rng.randrange(size) :]
    elif kind in ("flip", "flip-head"):
        end = min(size, 300) if kind == "flip-head" else size
        for _ in range(rng.choice([1, 5, 50])):
            bytes_[rng.randrange(end)] ^= rng.randrange(1, 256)
    elif kind != "none":
        block = rng.choice([188, 512, max(1, size // 10)])
        parts = [bytes_[i : i + block] for i in range(0, size, block)]
        i, j = sorted(rng.randrange(len(parts)) for _ in range(2))
        if kind == "drop":
            del parts[i : i + 1 + len(parts) // 10]
        elif kind == "swap":
            parts[i], parts[j] = parts[j], parts[i]
        elif kind == "repeat":
            parts[j:j] = parts[i : i + 3]
        elif kind == "zero":
            parts[i] = bytearray(len(parts[i]))
        elif kind == "join":
            parts += parts
        bytes_ = bytearray().join(parts)
    return kind, bytes(bytes_)


def make_videos(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Writes videos; the name of each and what is odd with it."""
    rng = random.Random(seed)
    kinds = containers()
    made: dict[str, str] = {}
    while len(made) < count:
        format, codec, suffix = kinds[len(made) % len(kinds)]
        fixed = codec in ("h261", "h263", "roqvideo")
        recipe = Recipe(
            format,
            codec,
            suffix,
            (720, 576) if codec == "dvvideo" else (176, 144) if fixed else rng.choice(SIZES),
            rng.choice(LENGTHS),
            rng.choice([*STAMPS, *["steady"] * 8]),
            rng.choice([*LAYOUTS, "video", "video"]),
        )
        path = folder / f"{len(made):04d}.{suffix}"
        if not write(recipe, path):
            recipe = dataclasses.replace(
                recipe, size=(176, 144), frames=25, stamps="steady", layout="video"
            )
            if not write(recipe, path):
                recipe = dataclasses.replace(recipe, size=(720, 576))
                assert write(recipe, path), recipe
        kind, data = damage(path.read_bytes(), rng)
        path.write_bytes(data)
        width, height = recipe.size
        made[path.name] = (
            f"{format} {codec} {width}x{height}, {recipe.frames} frames, {recipe.stamps}, "
            f"{recipe.layout}, {kind}"
        )
    return made


def run(folder: Path, count: int, seed: int, *, workers: int = 2) -> tuple[TokenStore, dict]:
    """Makes videos and tokenises them in one run of the command.

    Args:
        folder: An empty directory.
        count: Number of videos.
        seed: Of what is odd with them.
        workers: Of the command.

    Returns:
        The store, and what is odd with each video.

    Raises:
        AssertionError: A video is neither tokenised nor listed, or something was printed that is
            no line for users.
    """
    videos = folder / "videos"
    videos.mkdir(parents=True)
    made = make_videos(videos, count, seed)
    (folder / "list.txt").write_text("\n".join(made) + "\n")
    command = [sys.executable, "-m", "vimpac", "tokenize", "--list", str(folder / "list.txt")]
    command += ["--out", str(folder / "store"), "--size", "32", "--workers", str(workers)]
    command += ["--max-skipped", "100", "--video-timeout", "60"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=videos, errors="replace")
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr[-3000:]
    store = TokenStore(folder / "store")
    skipped = dict(store.skipped)
    names = [store.name(i) for i in range(len(store))]
    assert sorted([*names, *skipped]) == sorted(made)
    assert all(reason.strip() for reason in skipped.values())
    assert not [problem for problem in store.verify() if problem]
    frames = dict(zip(names, store.frames.tolist(), strict=True))
    for name, number in frames.items():
        limit = 2 * (LENGTHS[-1] * 2 + 1)  # two files joined; at 2 frames per second
        odd = any(word in made[name] for word in ("gap", "slow", "away"))
        assert number <= (10_000 if odd else limit), f"{name} ({made[name]}): {number} frames"
    for name, recipe in made.items():
        right = ", steady, " in recipe and recipe.endswith(" none")  # nothing is wrong with it
        if right and recipe.split()[0] not in UNSURE:
            seconds = int(recipe.split(", ")[1].split()[0]) / 25
            problem = skipped.get(name) or dict(store.notes).get(name)
            # FFmpeg itself cannot open some files of one frame.
            assert not problem or seconds < 0.1, f"{name} ({recipe}): {problem}"
            assert abs(frames.get(name, 1) - math.ceil(2 * seconds)) <= 1, f"{name} ({recipe})"
    return store, made


def main() -> None:
    """Runs and prints what became of the videos."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="make the videos and the store here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        begin, folder = time.perf_counter(), args.keep or Path(temporary)
        store, made = run(folder, args.videos, args.seed)
        seconds = time.perf_counter() - begin
        print(
            f"{args.videos} videos, seed {args.seed}: {len(store)} tokenised, "
            f"{len(store.skipped)} listed, {len(store.notes)} with notes, {seconds:.0f} s"
        )
        for reason, number in collections.Counter(r for _, r in store.skipped).most_common():
            print(f"  {number:4d}  {reason}")
        for name, reason in store.skipped:
            if args.keep:
                print(f"{name} ({made[name]}): {reason}")


if __name__ == "__main__":
    main()
