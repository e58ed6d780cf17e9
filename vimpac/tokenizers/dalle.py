"""The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv 2102.12092), the paper's tokenizer.

Encoder: 7x7 convolution, four groups of two residual blocks (widths 256, 512, 1024, 2048) with
2x2 max-pooling between groups, 1x1 convolution to 8192 logits, argmax. The decoder mirrors it.
A block adds `1 / n_layers^2` times ReLU-convolution x 4 at a quarter of its width, n_layers = 8.
Module names are those of the published files, so their state dicts load as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vimpac.errors import UsageError, VimpacError
from vimpac.paths import local_path
from vimpac.tokenizers import check_frames, check_ids, device_batch
from vimpac.tokenizers.weights import digest, load_state

GROUPS, BLOCKS = 4, 2
WIDTH, DECODER_INPUT, VOCABULARY = 256, 128, 8192
EPS = 0.1  # logit-Laplace: pixels are mapped from [0, 1] to [EPS, 1 - EPS]
DTYPES = ("float32", "float16", "bfloat16")
BATCH = 8  # frames at a time on a CPU; the first group's activations are 16 MiB per 128-pixel frame

DOWNLOAD = (
    "download https://cdn.openai.com/dall-e/encoder.pkl (for pictures decoder.pkl too, into the "
    "same directory) and name the file or the directory with --weights"
)


class DalleTokenizer:
    """The DALL-E encoder and, if its file is there, the decoder.

    Args:
        weights: The encoder's file, or a directory with `encoder.*` and maybe `decoder.*`
            (.safetensors, .pt or the published .pkl; no code in them is run).
        device: Where it computes.
        dtype: Of the encoder's convolutions, of `DTYPES`. The last one, which gives the logits,
            is always in float32. The published code is so, with float16, on a GPU.

    Attributes:
        compute: What ids depend on beside the weights: "", or e.g. "float16 on cuda".

    Raises:
        UsageError: No weights are given, the device cannot be used, or the dtype is not known.
        VimpacError: The weights are missing or do not fit.
    """

    name = "dalle"
    vocab_size = VOCABULARY
    patch = 8

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
    ) -> None:
        if dtype not in DTYPES:
            raise UsageError(f"--dtype {dtype} must be one of {', '.join(DTYPES)}")
        if weights is None:
            raise UsageError(f"the tokenizer 'dalle' needs weights: {DOWNLOAD}")
        path = local_path(weights)
        directory = path if path.is_dir() else path.parent
        encoder = _find(path, "encoder") if path.is_dir() else path
        if encoder is None or not encoder.is_file():
            raise VimpacError(f"{encoder or path / 'encoder.*'} does not exist: {DOWNLOAD}")
        self.device = _usable(device)
        self.digest = digest(encoder)
        self.compute = "" if dtype == "float32" else f"{dtype} on {self.device.type}"
        # Faster on a CPU, and what tensor cores take, which are of no use to float32.
        fast = self.device.type == "cpu" or self.compute
        self._layout = torch.channels_last if fast else torch.contiguous_format
        self._encoder = _load(Dvae.encoder(), "encoder", encoder).to(self.device)
        self._encoder.to(memory_format=self._layout)  # type: ignore[call-overload]  # not declared
        for name, block in self._encoder.blocks.named_children():
            block.to(torch.float32 if name == "output" else getattr(torch, dtype))
        self._decoder_file = _find(directory, "decoder")
        self._decoder: Dvae | None = None

    @torch.inference_mode()
    def encode(
        self,
        frames: np.ndarray,  # (F, 3, S, S)
    ) -> np.ndarray:
        """Encodes frames.

        The last digits of a convolution depend on the kernel that computes it, and with them an id
        where two logits are nearly equal. On a GPU all batches have one size, so that the kernel
        is the same whichever frames are encoded together.

        Args:
            frames: RGB (F, 3, S, S) uint8, S divisible by 8.

        Returns:
            Ids (F, S / 8, S / 8), int32.
        """
        check_frames(frames, self.patch)
        on_cpu = self.device.type == "cpu"
        batch = BATCH if on_cpu else device_batch(frames.shape[-1])
        padding = 0 if on_cpu else -len(frames) % batch
        padded = F.pad(torch.from_numpy(frames), (0, 0, 0, 0, 0, 0, 0, padding))
        # TF32, which torch allows, has no more digits than float16.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=bool(self.compute)):
            ids = [self._logits(part).argmax(1).cpu() for part in padded.split(batch)]
        return torch.cat(ids)[: len(frames)].int().numpy()

    def _logits(
        self,
        frames: torch.Tensor,  # (F, 3, S, S) uint8
    ) -> torch.Tensor:
        """Logits (F, 8192, S / 8, S / 8), float32, on the device."""
        pixels = frames.to(self.device, memory_format=self._layout)
        return self._encoder(pixels.float() / 255 * (1 - 2 * EPS) + EPS)

    @torch.inference_mode()
    def decode(
        self,
        ids: np.ndarray,  # (F, h, w)
    ) -> np.ndarray:
        """Paints the frames that the ids stand for.

        Args:
            ids: (F, h, w), integer, in [0, 8192).

        Returns:
            RGB (F, 3, 8 h, 8 w) uint8.

        Raises:
            UsageError: The decoder's weights are not there.
            VimpacError: They do not fit.
        """
        check_ids(ids, self.vocab_size)
        if self._decoder is None:
            if self._decoder_file is None:
                raise UsageError(f"no decoder beside the encoder's weights: {DOWNLOAD}")
            self._decoder = _load(Dvae.decoder(), "decoder", self._decoder_file).to(self.device)
        frames = []
        for part in torch.from_numpy(ids.astype(np.int64)).split(BATCH):
            onehot = F.one_hot(part.to(self.device), VOCABULARY).movedim(-1, 1).float()
            pixels = (self._decoder(onehot)[:, :3].sigmoid() - EPS) / (1 - 2 * EPS)
            frames.append((pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu())
        return torch.cat(frames).numpy()


class Convolution(nn.Module):
    """A same-size convolution in the dtype of its parameters, which have the published names."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.w, std=(inputs * kernel**2) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (F, inputs, H, W)
        """(F, inputs, H, W) to (F, outputs, H, W)."""
        return F.conv2d(x.to(self.w.dtype), self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Residual block: id_path(x) + res_path(x) / n_layers^2."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, int, int, int]) -> None:
        super().__init__()
        hidden = outputs // 4
        widths = [inputs, hidden, hidden, hidden, outputs]
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            path[f"relu_{i + 1}"] = nn.ReLU()
            path[f"conv_{i + 1}"] = Convolution(widths[i], widths[i + 1], kernel)
        self.id_path = nn.Identity() if inputs == outputs else Convolution(inputs, outputs, 1)
        self.res_path = nn.Sequential(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (F, inputs, H, W)
        """(F, inputs, H, W) to (F, outputs, H, W)."""
        return self.id_path(x) + self.res_path(x) / (GROUPS * BLOCKS) ** 2


class Dvae(nn.Module):
    """One half of the VAE, `blocks` = input, group_1 ... group_4, output."""

    def __init__(
        self,
        first: Convolution,
        widths: list[int],
        kernels: tuple[int, int, int, int],
        rescale: tuple[str, nn.Module],
        outputs: int,
    ) -> None:
        super().__init__()
        blocks: OrderedDict[str, nn.Module] = OrderedDict(input=first)
        width = first.w.shape[0]
        for i, next_width in enumerate(widths):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(BLOCKS):
                group[f"block_{j + 1}"] = Block(width, next_width, kernels)
                width = next_width
            if i + 1 < GROUPS:
                group[rescale[0]] = rescale[1]
            blocks[f"group_{i + 1}"] = nn.Sequential(group)
        last = OrderedDict(relu=nn.ReLU(), conv=Convolution(width, outputs, 1))
        blocks["output"] = nn.Sequential(last)
        self.blocks = nn.Sequential(blocks)

    @classmethod
    def encoder(cls) -> Dvae:
        """Pixels (F, 3, S, S) to logits (F, 8192, S / 8, S / 8)."""
        widths = [WIDTH << i for i in range(GROUPS)]
        pool = ("pool", nn.MaxPool2d(2))
        return cls(Convolution(3, WIDTH, 7), widths, (3, 3, 3, 1), pool, VOCABULARY)

    @classmethod
    def decoder(cls) -> Dvae:
        """One-hot ids (F, 8192, h, w) to statistics (F, 6, 8 h, 8 w), means first."""
        widths = [WIDTH << i for i in reversed(range(GROUPS))]
        upsample = ("upsample", nn.Upsample(scale_factor=2, mode="nearest"))
        first = Convolution(VOCABULARY, DECODER_INPUT, 1)
        return cls(first, widths, (1, 3, 3, 3), upsample, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (F, C, H, W)
        """Applies the half."""
        return self.blocks(x)


def _usable(device: str | torch.device) -> torch.device:
    """The device, on which something can be computed."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"device '{device}' cannot be used ({reason}): give e.g. cpu") from error


def _load(model: Dvae, half: str, file: Path) -> Dvae:
    """Fills a half from its file, which must have exactly its names and shapes."""
    state = load_state(file)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise VimpacError(f"{file} is no DALL-E {half} ({reason:.200}): {DOWNLOAD}") from error
    return model.eval().requires_grad_(False)


def _find(directory: Path, half: str) -> Path | None:
    """The weights file of one half in a directory."""
    files = [directory / f"{half}.{ext}" for ext in ("safetensors", "pt", "pth", "bin", "pkl")]
    return next((file for file in files if file.is_file()), None)
