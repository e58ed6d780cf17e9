"""How fast the encoder of DALL-E is in each dtype, and how many ids differ from float32.

    python benchmarks/dalle_encode.py [--device cuda] [--size 128] [--frames 8] [--rounds 3]
        [--dtypes float32 float16 bfloat16] [--weights encoder.pkl]

Without the published weights they are random, so that the share of ids that differ says little:
the logits of a trained encoder lie further apart. Frames are noise; rounds are interleaved, and the
best one counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vimpac.tokenizers.dalle import DTYPES, DalleTokenizer, Dvae


def measure(tokenizer: DalleTokenizer, frames: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Seconds and CPU seconds of one call, which ends when the ids are on the CPU, and the ids."""
    begin, cpu = time.perf_counter(), time.process_time()
    ids = tokenizer.encode(frames)
    return time.perf_counter() - begin, time.process_time() - cpu, ids


def main() -> None:
    """Measures and prints a line for every dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.weights is None:
            torch.manual_seed(0)
            args.weights = Path(folder) / "encoder.pt"
            torch.save(Dvae.encoder().state_dict(), args.weights)
        tokenizers = {
            dtype: DalleTokenizer(args.weights, device=args.device, dtype=dtype)
            for dtype in dict.fromkeys(("float32", *args.dtypes))
        }
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (args.frames, 3, args.size, args.size), np.uint8)
    exact = tokenizers["float32"].encode(frames)
    best = dict.fromkeys(args.dtypes, (float("inf"), float("inf")))
    differ = dict.fromkeys(args.dtypes, 0.0)
    for _ in range(args.rounds):
        for dtype in args.dtypes:
            *times, ids = measure(tokenizers[dtype], frames)
            best[dtype] = min(best[dtype], tuple(times))
            differ[dtype] = float((ids != exact).mean())
    print(f"{args.frames} frames of {args.size} pixels on {args.device}, torch {torch.__version__}")
    for dtype, (seconds, cpu) in best.items():
        print(
            f"{dtype}: {args.frames / seconds:.3g} frames/s, {cpu / args.frames:.3g} CPU s/frame, "
            f"{100 * differ[dtype]:.2g} % of the ids differ from float32"
        )


if __name__ == "__main__":
    main()
