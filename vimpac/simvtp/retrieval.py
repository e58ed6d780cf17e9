"""Finds videos by text: embeds videos once, then compares texts with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac.errors import UsageError, VimpacError
from vimpac.simvtp.description import read_any, read_words
from vimpac.simvtp.frames import Frames
from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.objective import mean_row
from vimpac.simvtp.outputs import check_finite
from vimpac.simvtp.ranks import dense_rank
from vimpac.simvtp.tubelets import draw_tubes
from vimpac.simvtp.views import VideoViews, read_views
from vimpac.train.distributed import Place, World, pick_device

MASK_SEED = 0  # of the tubelets that matching sees


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Videos that can be found.

    Attributes:
        files: Where videos are.
        numbers: Which of them it holds, those that could be read, in the order that was given.
        features: (videos, D) fp32, L2-normalised, of those.
        seen: (videos, V, D) fp32: the embedded tubelets of their middle view that matching sees;
            None unless it was asked for.
        unreadable: (name, reason) of the others.
    """

    files: Frames
    numbers: list[int]
    features: Tensor
    seen: Tensor | None
    unreadable: list[tuple[str, str]]

    @property
    def names(self) -> list[str]:
        """Of the videos that could be read."""
        return [self.files.names[number] for number in self.numbers]


class Retriever:
    """A pre-trained or fine-tuned model that finds videos by text.

    Args:
        checkpoint: A model directory of SimVTP.
        device: "auto", "cpu" or "cuda".
        precision: "bf16" or "fp32".

    Raises:
        ValueError: There is no such precision.
        UsageError: The directory holds no such model, or one without a vocabulary.
        VimpacError: A file is damaged.
    """

    def __init__(
        self, checkpoint: str | Path, *, device: str = "auto", precision: str = "fp32"
    ) -> None:
        if precision not in ("bf16", "fp32"):
            raise ValueError(f"{precision=} must be bf16 or fp32")
        model, description = read_any(checkpoint)
        self.words = read_words(description, checkpoint)
        self.step = description.frame_step or 1
        self.masked_cells = description.masked_cells or int(0.9 * model.config.cells)
        self._precision = precision
        self.world = World(pick_device(device, Place()))
        self.model = model.eval().requires_grad_(False).to(self.world.device)

    @property
    def joint_model(self) -> SimVTP:
        """The model, if it has a joint encoder.

        Raises:
            UsageError: It is fine-tuned, and has two encoders.
        """
        if not isinstance(self.model, SimVTP):
            raise UsageError("a fine-tuned model has no joint encoder: give a pre-trained one")
        return self.model

    def index(
        self,
        files: Frames,
        numbers: Sequence[int] | None = None,
        *,
        clips: int = 1,
        crops: int = 1,
        workers: int = 0,
        matching: bool = False,
        done: Callable[[], object] = lambda: None,
    ) -> Gallery:
        """Embeds videos.

        Args:
            files: Where videos are.
            numbers: Which of them, at least one; None: all.
            clips: Evenly spaced, of each.
            crops: Of each clip; the features of all are averaged.
            workers: Processes that decode; 0: none.
            matching: Whether `match` is to be asked.
            done: Called after each video.

        Raises:
            ValueError: `numbers` is empty, or another number is not positive.
            VimpacError: No video can be read, or features are not finite.
        """
        wanted = range(len(files)) if numbers is None else numbers
        if not len(wanted):
            raise ValueError("numbers must name a video")
        views = self.views(files, wanted, clips=clips, crops=crops)
        kept, features, seen, unreadable = [], [], [], []
        items = zip(wanted, read_views(views, workers), strict=True)
        for number, (pixels, reason) in items:
            if reason:
                unreadable.append((files.names[number], reason))
            else:
                kept.append(number)
                features.append(self._embed(pixels))
                if matching:
                    seen.append(self._see(pixels[len(pixels) // 2]))
            done()
        if not kept:
            name, reason = unreadable[0]
            raise VimpacError(f"none of {len(wanted)} videos can be read; {name}: {reason}")
        return Gallery(
            files,
            kept,
            torch.stack(features),
            torch.stack(seen) if seen else None,
            unreadable,
        )

    def views(
        self, files: Frames, numbers: Sequence[int], *, clips: int = 1, crops: int = 1
    ) -> VideoViews:
        """The views of some videos as the model takes them; by default the middle one."""
        config = self.model.config
        return VideoViews(
            files,
            numbers,
            frames=config.frames,
            step=self.step,
            size=config.size,
            clips=clips,
            crops=crops,
        )

    @torch.no_grad()
    def _embed(
        self,
        pixels: Tensor,  # (views, T, S, S, 3) uint8
    ) -> Tensor:  # (D,)
        with self.world.autocast(self._precision):
            found = [self.model.embed_video(view[None].to(self.world.device)) for view in pixels]
        feature = F.normalize(torch.cat(found).float().mean(0), dim=0)
        return check_finite(feature, "features of a video").cpu()

    @torch.no_grad()
    def _see(
        self,
        clip: Tensor,  # (T, S, S, 3) uint8
    ) -> Tensor:  # (V, D)
        """The tubelets that the training would leave visible, embedded."""
        model = self.joint_model
        visible, _ = draw_tubes(self.model.config, self.masked_cells, 1, MASK_SEED)
        device = self.world.device
        return model.encoder.tubelets(clip[None].to(device), visible.to(device))[0].cpu()

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str], batch: int = 64) -> Tensor:  # (n, D) fp32
        """Features of texts, L2-normalised.

        Raises:
            TypeError: `captions` is one text.
            ValueError: There are none, or `batch` is not positive.
            VimpacError: Features are not finite.
        """
        if not captions:
            raise ValueError("captions must not be empty")
        _check_positive("batch", batch)
        found = []
        for ids, attention in self._encode(captions, batch):
            with self.world.autocast(self._precision):
                features = self.model.embed_text(ids, attention).float()
            found.append(check_finite(features, "features of a text").cpu())
        return torch.cat(found)

    def without_words(self, captions: Sequence[str]) -> list[str]:
        """Those of which the model knows no word, so their features say nothing."""
        counts = zip(captions, self.count_unknown(captions), strict=True)
        return [text for text, (unknown, words) in counts if unknown == words]

    def count_unknown(self, captions: Sequence[str]) -> list[tuple[int, int]]:
        """(words that the model does not know, words) of each caption."""
        unknown = self.words.special.unk
        return [(ids.count(unknown), len(ids)) for ids in self.words.word_ids(captions)]

    def _encode(self, captions: Sequence[str], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids and attention, by batches of one length."""
        length = min(self.model.text_config.length, self.model.config.text_positions)
        longest = self.words.encode(captions, length)[0].shape[1]
        for start in range(0, len(captions), batch):
            part = captions[start : start + batch]
            ids, attention = self.words.encode(part, length, pad_to=longest)
            yield ids.to(self.world.device), attention.to(self.world.device)

    @torch.no_grad()
    def match(self, caption: str, gallery: Gallery, places: Sequence[int]) -> Tensor:  # (places,)
        """The log-probability that a text matches each of some videos, by the joint encoder.

        Raises:
            UsageError: The model has no joint encoder.
            ValueError: `places` is empty, or the gallery was indexed without `matching=True`.
            VimpacError: The model's outputs are not finite.
        """
        if gallery.seen is None:
            raise ValueError("the gallery was indexed without matching=True")
        if not len(places):
            raise ValueError("places must name a video of the gallery")
        ((ids, attention),) = self._encode([caption], 1)
        tubelets = gallery.seen[[*places]].to(self.world.device)
        model = self.joint_model
        text = model.encoder.words(ids).expand(len(tubelets), -1, -1)
        seen = attention.expand(len(tubelets), -1)
        with self.world.autocast(self._precision):
            hidden, _ = model.encoder(tubelets, text, seen)
            pool = seen if model.text_config.pool == "words" else None
            logits = model.match_head(mean_row(hidden, pool))
        no, yes = check_finite(logits, "match logits").float().unbind(-1)
        return F.logsigmoid(yes - no).cpu()  # log_softmax would round what is near 0 to 0

    def rerank(
        self,
        similarity: Tensor,  # (texts, videos)
        captions: Sequence[str],
        gallery: Gallery,
        best: int,
    ) -> Tensor:  # (texts, videos) fp32
        """Orders the `best` videos of each text by how well they match it, before all others.

        Returns:
            The places of a text's videos from the worst, 0, which neither round nor overflow;
            videos that are alike have the same one.

        Raises:
            ValueError: `best` is not positive, or a shape does not fit; see also `match`.
        """
        _check_positive("best", best)
        if similarity.shape != (len(captions), len(gallery.numbers)):
            raise ValueError(
                f"similarity must be ({len(captions)} captions, {len(gallery.numbers)} videos), "
                f"got {tuple(similarity.shape)}"
            )
        reranked = torch.empty(similarity.shape)
        for row, (scores, caption) in enumerate(zip(similarity, captions, strict=True)):
            places = scores.topk(min(best, len(scores))).indices
            matched = self.match(caption, gallery, places.tolist())
            reranked[row] = dense_rank(scores)
            reranked[row, places] = len(scores) + dense_rank(matched)
        return reranked

    def search(self, text: str, gallery: Gallery, top: int = 5) -> list[tuple[str, float]]:
        """The videos that fit a text best.

        Args:
            text: Has a word that the model knows.
            gallery: The videos.
            top: How many, if there are as many.

        Returns:
            (name, cosine) of each, the best first.

        Raises:
            ValueError: `top` is not positive, or the model knows no word of the text.
            VimpacError: Features are not finite.
        """
        _check_positive("top", top)
        if self.without_words([text]):
            raise ValueError(f"{text=} has no word that the model knows")
        scores = gallery.features @ self.embed_captions([text])[0]
        best = scores.topk(min(top, len(scores)))
        return [
            (gallery.names[place], score)
            for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value} must be positive")
