"""Writes videos of moving shapes and their labels: something to try every command on.

    python benchmarks/moving_shapes.py shapes --videos 480 --label "colour shape"

A video is a second of one shape that moves (see benchmarks/learning.py). `shapes/videos` gets the
files, `shapes/labels.csv` the class of each; a third of them is to test on.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import av
import numpy as np
from learning import ATTRIBUTES, FRAMES, SIDE, draw_video

SCALE = 4  # screen pixels of a pixel that is drawn: codecs blur small pictures


def write_video(path: Path, frames: np.ndarray) -> None:
    """Writes RGB (FRAMES, 3, SIDE, SIDE) uint8 as MPEG-4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FRAMES)
        stream.width = stream.height = SCALE * SIDE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for frame in frames:
            image = frame.transpose(1, 2, 0).repeat(SCALE, 0).repeat(SCALE, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


def main() -> None:
    """Writes the videos."""
    parser = argparse.ArgumentParser(description="Writes videos of moving shapes, and labels.")
    parser.add_argument("folder", type=Path, help="where videos/ and labels.csv are to be")
    parser.add_argument("--videos", type=int, default=240, help="how many")
    parser.add_argument(
        "--label", default="shape", help=f"the class: one or more of {', '.join(ATTRIBUTES)}"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything in them")
    args = parser.parse_args()
    attributes = args.label.split()
    if not {*attributes} <= {*ATTRIBUTES}:
        parser.error(f"--label {args.label}: give one or more of {', '.join(ATTRIBUTES)}")
    rng = np.random.default_rng(args.seed)
    (args.folder / "videos").mkdir(parents=True)
    with (args.folder / "labels.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("video", "class", "split"))
        for i in range(args.videos):
            frames, classes = draw_video(rng)
            name = f"{i:05}.mp4"
            write_video(args.folder / "videos" / name, frames)
            label = " ".join(classes[attribute] for attribute in attributes)
            lines.writerow((name, label, "test" if i % 3 == 0 else "train"))
    print(f"{args.folder}: {args.videos} videos")


if __name__ == "__main__":
    main()
