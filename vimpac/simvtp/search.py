"""What `vimpac simvtp retrieve` and `embed` do: a model, its videos, and what is asked of them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from vimpac.errors import UsageError
from vimpac.progress import progress_bar, terminated_as_interrupted
from vimpac.simvtp.captions import match_videos, read_choices
from vimpac.simvtp.captions.captioned import Captioned
from vimpac.simvtp.frames import Frames, open_frames
from vimpac.simvtp.pairs import open_pairs
from vimpac.simvtp.ranks import Recall, Retrieval, dual_softmax, judge, rank_of
from vimpac.simvtp.retrieval import Gallery, Retriever

SKIP = "--missing skip"


def open_retriever(args: argparse.Namespace) -> Retriever:
    """The model of a command line."""
    return Retriever(args.checkpoint, device=args.device, precision=args.precision)


def embed_videos(
    args: argparse.Namespace,
    retriever: Retriever,
    files: Frames,
    numbers: Sequence[int] | None = None,
    matching: bool = False,
) -> Gallery:
    """Embeds videos by the views that the command line says; names those that are unreadable."""
    console = Console(stderr=True)
    count = len(files) if numbers is None else len(numbers)
    bar = progress_bar(console) if console.is_terminal else None
    with terminated_as_interrupted(), bar or nullcontext():
        task = bar.add_task("embedding", total=count) if bar else None
        gallery = retriever.index(
            files,
            numbers,
            clips=args.clips,
            crops=args.crops,
            workers=args.workers,
            matching=matching,
            done=lambda: bar.advance(task) if bar and task is not None else None,
        )
    for name, reason in gallery.unreadable:
        console.print(f"left out: {name}: {reason}", markup=False, highlight=False)
    return gallery


def notes_on(retriever: Retriever, captions: Sequence[str]) -> list[str]:
    """A note on the captions of which the model knows no word, or not all, if there are any."""
    counts = [*zip(captions, retriever.count_unknown(captions), strict=True)]
    some = [text for text, (unknown, words) in counts if 0 < unknown < words]
    none = [text for text, (unknown, words) in counts if unknown == words]
    notes = [
        f"{len(texts)} of {len(captions)} captions have {what}, the first is '{texts[0]}'"
        for texts, what in (
            (none, "no word that the model knows"),
            (some, "some words that the model does not know"),
        )
        if texts
    ]
    return [f"note: {'; '.join(notes)}"] if notes else []


@dataclasses.dataclass(frozen=True)
class Found:
    """A video that fits a query.

    Attributes:
        name: Of its file.
        cosine: Of the two features.
        match: The probability that the query matches it, by VTM; None: it was not asked for.
    """

    name: str
    cosine: float
    match: float | None = None


def find(args: argparse.Namespace) -> list[Found]:
    """The videos that fit --query best, the best first."""
    retriever = open_retriever(args)
    ((unknown, words),) = retriever.count_unknown([args.query])
    if unknown == words:
        raise UsageError(f"--query '{args.query}' has no word that the model knows")
    if unknown:
        note = f"note: the model does not know {unknown} of {words} words of --query"
        print(note, file=sys.stderr)
    gallery = embed_videos(args, retriever, open_frames(args.videos), matching=args.rerank > 0)
    if not args.rerank:
        return [Found(*one) for one in retriever.search(args.query, gallery, args.top)]
    cosines = gallery.features @ retriever.embed_captions([args.query])[0]
    places = cosines.topk(min(args.rerank, len(cosines))).indices.tolist()
    matched = retriever.match(args.query, gallery, places)
    return [
        Found(gallery.names[places[i]], float(cosines[places[i]]), float(matched[i].exp()))
        for i in matched.argsort(descending=True, stable=True)[: args.top].tolist()
    ]


def test(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Ranks in both directions: lines to print, and the numbers."""
    retriever = open_retriever(args)
    pairs = open_pairs(
        args.data,
        args.videos,
        split=args.split,
        part=args.part,
        missing=args.missing,
        skip=SKIP,
    )
    gallery = embed_videos(args, retriever, pairs.files, pairs.numbers, args.rerank > 0)
    place = {number: i for i, number in enumerate(gallery.numbers)}
    texts: list[str] = []
    videos: list[int] = []
    for captioned, number in zip(pairs.captioned, pairs.numbers, strict=True):
        if number in place:
            texts += captioned.captions
            videos += [place[number]] * len(captioned.captions)
    similarity = retriever.embed_captions(texts) @ gallery.features.T
    found = judge_by(args, retriever, gallery, similarity, texts, torch.tensor(videos))
    facts = {
        **conditions(args, args.data, gallery),
        "split": args.split,
        "part": pairs.captioned[0].split,  # empty: the table names none
        "captions": len(texts),
        "dual_softmax": args.dual_softmax,
        "temperature": retriever.model.loss_config.temperature if args.dual_softmax else None,
        "rerank": args.rerank,
        "text_to_video": dataclasses.asdict(found.text_to_video),
        "video_to_text": dataclasses.asdict(found.video_to_text),
    }
    notes = [f"note: {note}" for note in pairs.notes]
    return [*notes, *notes_on(retriever, texts), *table(found, len(gallery.numbers))], facts


def conditions(args: argparse.Namespace, data: str, gallery: Gallery) -> dict[str, Any]:
    """What the numbers of every test depend on."""
    return {
        "checkpoint": str(args.checkpoint),
        "precision": args.precision,
        "data": data,
        "missing": args.missing,
        "videos": len(gallery.numbers),
        "unreadable": len(gallery.unreadable),
        "clips": args.clips,
        "crops": args.crops,
    }


def judge_by(
    args: argparse.Namespace,
    retriever: Retriever,
    gallery: Gallery,
    similarity: Tensor,  # (texts, videos)
    texts: list[str],
    videos: Tensor,  # (texts,)
) -> Retrieval:
    """Ranks as the command line says."""
    to_video = to_text = similarity
    if args.dual_softmax:
        temperature = retriever.model.loss_config.temperature
        to_video, to_text = dual_softmax(similarity, temperature)
    if args.rerank:
        to_video = retriever.rerank(to_video, texts, gallery, args.rerank)
    right = videos[:, None] == torch.arange(len(gallery.numbers))
    plain = judge(to_text, videos)
    return Retrieval(Recall.of(rank_of(to_video, right)), plain.video_to_text)


def table(found: Retrieval, videos: int) -> list[str]:
    """The numbers of both directions, and those of guessing."""
    lines = ["                  R@1     R@5    R@10    R@50   MdR    MnR"]
    for name, of in (
        ("text to video", found.text_to_video),
        ("video to text", found.video_to_text),
    ):
        shares = "  ".join(f"{share:6.1%}" for share in (of.r1, of.r5, of.r10, of.r50))
        lines.append(f"{name:15} {shares}  {of.median:4g}  {of.mean:5.1f}   {of.queries} queries")
    guess = "  ".join(f"{min(1, k / videos):6.1%}" for k in (1, 5, 10, 50))
    return [*lines, f"{'chance':15} {guess}  {(videos + 1) / 2:4g}  {(videos + 1) / 2:5.1f}"]


def test_choices(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Multiple choice: right is an answer that is more alike than all the others."""
    retriever = open_retriever(args)
    questions = read_choices(args.choices)
    files = open_frames(args.videos)
    named = {question.video: Captioned(question.video, ("",)) for question in questions}
    matched = match_videos(
        [*named.values()],
        files.names,
        source=args.choices,
        missing=args.missing,
        skip=SKIP,
        every_file=False,
    )
    gallery = embed_videos(args, retriever, files, matched.files)
    by_number = {number: i for i, number in enumerate(gallery.numbers)}
    place = {
        one.video: by_number[number]
        for one, number in zip(matched.captioned, matched.files, strict=True)
        if number in by_number
    }
    asked = [question for question in questions if question.video in place]
    if not asked:
        raise UsageError(f"{args.choices} asks about no video that could be read")
    choices = len(asked[0].captions)
    texts = [caption for question in asked for caption in question.captions]
    features = retriever.embed_captions(texts).unflatten(0, (-1, choices))
    videos = gallery.features[[place[question.video] for question in asked]]
    scores = (features * videos[:, None]).sum(-1)  # (questions, choices)
    answers = torch.tensor([question.answer for question in asked])
    share = Recall.of(rank_of(scores, answers[:, None] == torch.arange(choices))).r1
    facts = {
        **conditions(args, args.choices, gallery),
        "questions": len(asked),
        "choices": choices,
        "accuracy": share,
    }
    line = f"{share:.1%} of {len(asked)} questions right; chance {1 / choices:.1%}"
    notes = [f"note: {note}" for note in matched.notes]
    return [*notes, *notes_on(retriever, texts), line], facts
