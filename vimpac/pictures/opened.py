"""A trained model made ready for a clip of a store."""

from __future__ import annotations

from torch import Tensor

from vimpac.checkpoints.model_dir import load_encoder, load_model, read_description
from vimpac.data.store_format import StoreMeta
from vimpac.errors import VimpacError
from vimpac.eval.applied import Reading, fit_to_store
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.pretraining import Vimpac
from vimpac.paths import local_path
from vimpac.pictures.config import ModelPictureConfig
from vimpac.train.distributed import pick_device
from vimpac.train.launch import Place


def open_pretrained(
    folder: str, meta: StoreMeta, config: ModelPictureConfig
) -> tuple[Vimpac, Reading]:
    """Reads a pre-trained model, and fits it to the clips of a store.

    Args:
        folder: A model directory.
        meta: Of the store.
        config: Its device, and what is read of a video.

    Returns:
        The model on the device, in evaluation mode, and how clips are read.

    Raises:
        UsageError: It is no pre-trained model, or was trained on other tokens than the store's.
        VimpacError: A file is damaged.
    """
    path, device = local_path(folder), pick_device(config.device, Place())
    model = load_model(path).eval()
    clips = config.clips
    reading = fit_to_store(
        model.encoder,
        path,
        read_description(path),
        meta,
        frames=clips.frames,
        stride=clips.frame_stride,
    )
    return model.to(device), reading


def open_encoder(
    folder: str, meta: StoreMeta, config: ModelPictureConfig
) -> tuple[VideoTokenEncoder, Reading]:
    """As `open_pretrained`, the encoder of any model directory."""
    path, device = local_path(folder), pick_device(config.device, Place())
    encoder, description = load_encoder(path)
    clips = config.clips
    reading = fit_to_store(
        encoder.eval(), path, description, meta, frames=clips.frames, stride=clips.frame_stride
    )
    return encoder.to(device), reading


def check_finite(values: Tensor, what: str) -> None:
    """Raises VimpacError if a value that a model has computed is not finite.

    Args:
        values: What it has computed.
        what: What it is, for the message.
    """
    if not values.isfinite().all():
        raise VimpacError(f"{what} of the model are not finite: use another checkpoint")
