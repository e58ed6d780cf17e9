"""The wrappers of csrc/cuda/mma.cuh: what they compute, the PTX they emit, the device's answer."""

import ctypes
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.emulator import build

SOURCE = build.EMULATOR / "wrappers.cu"
DTYPES = {"mma_bf16": torch.bfloat16, "mma_fp16": torch.float16}
WORDS_OUT = {  # by wrapper
    **dict.fromkeys(
        ("mma_bf16", "mma_fp16", "ldmatrix_x4", "ldmatrix_x4_trans", "cp_async_8"), 128
    ),
    **dict.fromkeys(("ldmatrix_x2", "ldmatrix_x2_trans", "cp_async_4"), 64),
    **dict.fromkeys(("ldmatrix_x1", "ldmatrix_x1_trans", "pack_bf16", "pack_fp16"), 32),
    "transpose_8x8": 32,
    "cp_async_16": 256,
}
COPY = "cp.async.{}.shared.global [r], [rd], {}, r;"
PTX = {
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {f,f,f,f}, {r,r,r,r}, {r,r}, {f,f,f,f};",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {f,f,f,f}, {r,r,r,r}, {r,r}, {f,f,f,f};",
    "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r}, [r];",
    "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r,r}, [r];",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r,r,r,r}, [r];",
    "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {r}, [r];",
    "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {r,r}, [r];",
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {r,r,r,r}, [r];",
    *(COPY.format(cache, size) for cache, size in (("ca", 4), ("ca", 8), ("cg", 16))),
    "movmatrix.sync.aligned.m8n8.trans.b16 r, r;",
    "cp.async.commit_group;",
    "cp.async.wait_group 0;",
    "cp.async.wait_group 1;",
}


@cache
def emulated() -> ctypes.CDLL:
    """The wrappers on the emulator."""
    reason = build.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return ctypes.CDLL(str(build.build("wrappers.so", [SOURCE])))


def run(library: ctypes.CDLL, name: str, words: Tensor) -> Tensor:
    """What the wrapper `name` makes of `words`, int32 (512,): int32 of its own length."""
    out = torch.full((WORDS_OUT[name],), -1, dtype=torch.int32, device=words.device)
    pointers = (ctypes.c_void_p(words.data_ptr()), ctypes.c_void_p(out.data_ptr()))
    assert library.run_wrapper(name.encode(), *pointers) == 0
    return out.cpu()


def inputs(name: str) -> Tensor:
    """Seeded operands of a wrapper, int32 (512,)."""
    rng = np.random.default_rng(0)
    if name.startswith("mma"):
        ab = torch.from_numpy(rng.standard_normal(384)).to(DTYPES[name]).view(torch.int32)
        c = torch.from_numpy(rng.standard_normal(128)).float().view(torch.int32)
        return torch.cat((ab, c, torch.zeros(192, dtype=torch.int32)))
    if name.startswith("pack"):
        return torch.from_numpy(rng.standard_normal(512)).float().view(torch.int32)
    return torch.from_numpy(rng.integers(-(2**31), 2**31, 512, dtype=np.int32))


@pytest.mark.parametrize("name", DTYPES)
def test_mma_multiplies_the_documented_fragments(name):
    words = inputs(name)
    a_words, b_words = words[:128].view(DTYPES[name]), words[128:192].view(DTYPES[name])
    a, b, c = torch.zeros(16, 16), torch.zeros(16, 8), torch.zeros(16, 8)
    d = run(emulated(), name, words).view(torch.float32)
    actual = torch.zeros(16, 8)
    for lane in range(32):
        g, t = divmod(lane, 4)
        for i in range(4):
            for e in range(2):
                a[g + 8 * (i % 2), 2 * t + 8 * (i // 2) + e] = a_words[8 * lane + 2 * i + e]
            c[g + 8 * (i // 2), 2 * t + i % 2] = words.view(torch.float32)[192 + 4 * lane + i]
            actual[g + 8 * (i // 2), 2 * t + i % 2] = d[4 * lane + i]
        for i in range(2):
            for e in range(2):
                b[2 * t + 8 * i + e, g] = b_words[4 * lane + 2 * i + e]
    torch.testing.assert_close(actual, a @ b + c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transpose", [False, True], ids=["", "trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_distributes_the_documented_elements(count, transpose):
    name = f"ldmatrix_x{count}" + "_trans" * transpose
    matrices = inputs(name)[:128].view(torch.int16).view(4, 8, 8)[:count]
    if transpose:
        matrices = matrices.mT
    expected = matrices.reshape(count, 32, 2).transpose(0, 1)  # lane 4 g + t: row g, columns 2 t
    actual = run(emulated(), name, inputs(name)).view(torch.int16)
    assert torch.equal(actual.view(32, count, 2), expected)


def test_transpose_8x8_exchanges_rows_and_columns():
    words = inputs("transpose_8x8")[:32]
    expected = words.view(torch.int16).view(8, 8).mT.reshape(64)
    assert torch.equal(run(emulated(), "transpose_8x8", words).view(torch.int16), expected)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_copies_and_fills_with_zeros(size):
    words = inputs(f"cp_async_{size}")
    expected = words[: 16 * size].clone().view(64, size // 4)
    expected[1::2] = 0
    assert torch.equal(run(emulated(), f"cp_async_{size}", words), expected.flatten())


@pytest.mark.parametrize("name, dtype", [("pack_bf16", torch.bfloat16), ("pack_fp16", torch.half)])
def test_pack_rounds_to_nearest(name, dtype):
    expected = inputs(name)[:64].view(torch.float32).to(dtype).view(torch.int32)
    assert torch.equal(run(emulated(), name, inputs(name)), expected)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc to emit PTX")
def test_wrappers_emit_the_golden_ptx(tmp_path: Path):
    command = ["nvcc", "-std=c++17", f"-I{build.CSRC}", "-arch=compute_80", "-ptx", str(SOURCE)]
    subprocess.run([*command, "-o", str(tmp_path / "wrappers.ptx")], check=True)
    text = (tmp_path / "wrappers.ptx").read_text()
    lines = re.findall(r"// begin inline asm\n\s*(.*?)\n\s*// end inline asm", text, re.S)
    emitted = {re.sub(r"%(rd|r|f)\d+", r"\1", line) for line in lines}
    assert {line for line in emitted if not line.startswith("{")} == PTX  # {...}: CUDA's headers


@cache
def on_device() -> ctypes.CDLL:
    """The wrappers compiled by nvcc for this machine's device."""
    folder = build.ROOT / "build" / "wrappers"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"wrappers-{os.getpid()}.so"  # tests may run in several processes
    command = ["nvcc", "-std=c++17", f"-I{build.CSRC}", "-arch=native", "-shared"]
    command += ["-Xcompiler", "-fPIC", str(SOURCE), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library.replace(folder / "wrappers.so")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc to compile the wrappers")
@pytest.mark.parametrize("name", WORDS_OUT)
def test_device_agrees_with_the_emulator(name):
    expected = run(emulated(), name, inputs(name))
    words = inputs(name).cuda()
    torch.cuda.synchronize()
    actual = run(on_device(), name, words)
    if name.startswith("mma"):  # the device's order of summation is its own
        actual, expected = actual.view(torch.float32), expected.view(torch.float32)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(actual, expected)
