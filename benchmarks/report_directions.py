"""The paper's claims that synthetic videos can show, and the tables of directions.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

NEVER = "never trained"
# What directions.py trains: name, settings. {ratio} is the share of tokens that blocks hide.
MODELS: dict[str, list[str]] = {
    NEVER: [],
    "both": [],
    "masks only": ["loss.alpha=0"],
    "masks only, iid": ["loss.alpha=0", "mask.strategy=iid", "mask.ratio={ratio}"],
    "contrast only": ["loss.mask=0", "mask.contrast=whole"],
    "contrast only, masked": ["loss.mask=0"],
    "both, contrast whole": ["mask.contrast=whole"],
    "d_max 0.25 s": ["clips.max_distance=0.25"],
    "d_max 0": ["clips.max_distance=0"],
    "T,H,W": ["model.layout=T,H,W"],
    "T,HW": ["model.layout=T,HW"],
    "THW": ["model.layout=THW"],
}
LABELS = {"spatial": ("colour", "shape"), "temporal": ("direction", "speed")}  # 16 classes each
TESTS = {"tuned": "fine-tuned", "probed": "linear probe"}  # how a row's accuracies were found
Seed = dict[str, dict[str, Any]]  # the rows of one seed by model


def _accuracy(row: dict[str, Any], test: str, *labels: str) -> float:
    """The mean accuracy on labels, all without any, in %."""
    names = labels or tuple(LABELS)
    return 100 * sum(row[test][name] for name in names) / len(names)


def _log(row: dict[str, Any], key: str) -> float:
    return row["training"][key]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A difference whose sign the paper's numbers give.

    Attributes:
        text: The claim.
        paper: Where, and the numbers.
        more: The model that has more, or the lower loss.
        less: The model that has less.
        measure: The difference in one seed, of the rows of both and one of `TESTS`; positive is the
            paper's direction.
        unit: Of the difference.
        is_tested: Whether it is of an accuracy that `TESTS` find, else of the log.
    """

    text: str
    paper: str
    more: str
    less: str
    measure: Callable[[dict[str, Any], dict[str, Any], str], float] = lambda more, less, test: (
        _accuracy(more, test) - _accuracy(less, test)
    )
    unit: str = "points"
    is_tested: bool = True


def _lead(more: dict[str, Any], less: dict[str, Any], test: str) -> float:
    """By how many points more a model leads on the temporal label than on the spatial one."""
    leads = (
        _accuracy(more, test, label) - _accuracy(less, test, label)
        for label in ("temporal", "spatial")
    )
    return next(leads) - next(leads)


def _mask_claim(text: str, paper: str, more: str, less: str) -> Claim:
    def points(more: dict[str, Any], less: dict[str, Any], test: str) -> float:
        return 100 * (_log(more, "mask_accuracy") - _log(less, "mask_accuracy"))

    return Claim(text, paper, more, less, points, is_tested=False)


def _loss_claim(text: str, paper: str, low: str, high: str) -> Claim:
    def drop(low: dict[str, Any], high: dict[str, Any], test: str) -> float:
        return _log(high, "cl_loss") - _log(low, "cl_loss")

    return Claim(text, paper, low, high, drop, unit="", is_tested=False)


CLAIMS = (
    Claim("Masked prediction helps", "Table 7: 68.3 > 41.3", "masks only", NEVER),
    Claim("The contrastive loss helps", "Table 7: 57.1 > 41.3", "contrast only", NEVER),
    Claim(
        "Masked prediction helps more than the contrastive loss",
        "Table 7: 68.3 > 57.1",
        "masks only",
        "contrast only",
    ),
    Claim("Both help more than masked prediction", "Table 7: 69.4 > 68.3", "both", "masks only"),
    Claim(
        "Masked prediction leads the contrastive loss by more on temporal labels",
        "Table 7: by 9.9 on SSV2 and Diving48, 7.5 on the others",
        "masks only",
        "contrast only",
        _lead,
    ),
    _mask_claim(
        "Iid masks are easier to fill in than block masks",
        "Table 8: mask accuracy 24.3 > 17.6",
        "masks only, iid",
        "masks only",
    ),
    Claim(
        "Block masks teach more than iid masks",
        "Table 8: 68.3 > 63.5",
        "masks only",
        "masks only, iid",
    ),
    Claim(
        "Masks as an augmentation hurt the contrastive loss alone",
        "Table 12: 57.1 > 55.5",
        "contrast only",
        "contrast only, masked",
    ),
    Claim(
        "With masked prediction, masked clips serve the contrastive loss better",
        "Table 12: 69.4 > 67.4",
        "both",
        "both, contrast whole",
    ),
    _loss_claim(
        "The contrastive loss falls with the distance of its clips",
        "Table 10: 0.61 (10 s) < 1.06",
        "d_max 0.25 s",
        "both",
    ),
    _loss_claim(
        "It is lowest where both clips are the same",
        "Table 10: 0.41 < 0.61",
        "d_max 0",
        "d_max 0.25 s",
    ),
    _mask_claim(
        "Mask accuracy is higher where both clips are the same",
        "Table 10: 17.5 > 17.2",
        "d_max 0",
        "both",
    ),
    Claim(
        "Clips at any distance teach more than the same clip twice",
        "Table 10: 69.4 > 66.7",
        "both",
        "d_max 0",
    ),
    Claim("T,H|W learns more than dense attention", "Table 13: 69.4 > 65.9", "both", "THW"),
    Claim("T,HW learns more than dense attention", "Table 13: 69.0 > 65.9", "T,HW", "THW"),
    Claim("T,H,W learns more than T,H|W", "Table 13: 69.6 > 69.4", "T,H,W", "both"),
)


def verdict(differences: list[float]) -> str:
    """Whether the sign is the paper's in every seed ("yes"), in none ("no"), or in some."""
    right = sum(difference > 0 for difference in differences)
    if right in (0, len(differences)):
        return "yes" if right else "no"
    return f"in {right} of {len(differences)} seeds"


def direction_tables(results: dict[str, Any]) -> list[str]:
    """Markdown: what each model learned, then each claim and whether it holds here."""
    rows, settings = results["rows"], results["settings"]
    seeds: dict[int, Seed] = {}
    for row in rows:
        seeds.setdefault(row["seed"], {})[row["model"]] = row
    heads = [f"{title}, {label}" for title in TESTS.values() for label in LABELS]
    lines = [
        f"| model | settings | mask accuracy | contrastive loss | {' | '.join(heads)} |",
        "|---" * (4 + len(heads)) + "|",
    ]
    for name, words in MODELS.items():
        own = [row for row in rows if row["model"] == name]
        if own:
            lines.append(_model_row(name, words, own))
    lines += ["", "| the paper says | where | here, fine-tuned | here, linear probe |"]
    lines += ["|---|---|---|---|"]
    for claim in CLAIMS:
        pairs = [(s[claim.more], s[claim.less]) for s in seeds.values() if _has(s, claim)]
        if pairs:
            found = [[claim.measure(*pair, test) for pair in pairs] for test in TESTS]
            cells = [_signed(values, claim.unit) for values in found]
            cells = cells if claim.is_tested else [cells[0], "the same"]
            lines.append(f"| {_escape(claim.text)} | {claim.paper} | {' | '.join(cells)} |")
    minutes = sum(row["cpu_minutes"] for row in rows)
    places = sorted({(r["environment"]["device"], r["environment"]["date"]) for r in rows})
    said = (
        f"{settings['steps']} steps on {settings['videos']} videos; mean (lowest to highest) of "
        f"{len(seeds)} seeds; {minutes:.0f} CPU minutes in all on "
        f"{' and '.join(', '.join(place) for place in places)}: `{results['command']}`"
    )
    return [*lines, "", said]


def _has(seed: Seed, claim: Claim) -> bool:
    return {claim.more, claim.less} <= {*seed}


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _model_row(name: str, words: list[str], rows: list[dict[str, Any]]) -> str:
    shown = _escape(" ".join(words).format(ratio="as many"))
    cells = [_escape(name), f"`{shown}`" if shown else "-"]
    trained = [row["training"] for row in rows if row["training"]]
    predicts = trained and "loss.mask=0" not in words
    contrasts = trained and "loss.alpha=0" not in words
    cells.append(_spread([100 * t["mask_accuracy"] for t in trained], 1, " %") if predicts else "-")
    cells.append(_spread([t["cl_loss"] for t in trained], 2) if contrasts else "-")
    for test in TESTS:
        for label in LABELS:
            cells.append(_spread([_accuracy(row, test, label) for row in rows], 1, " %"))
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float], digits: int, unit: str = "") -> str:
    """The mean, and the lowest and highest if they differ."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    mean = f"{sum(values) / len(values):.{digits}f}{unit}"
    return mean if low == high else f"{mean} ({low} to {high})"


def _signed(values: list[float], unit: str) -> str:
    """Whether a claim holds, and the difference."""
    digits = 1 if unit else 3  # a loss has no unit
    low, high = f"{min(values):+.{digits}f}", f"{max(values):+.{digits}f}"
    mean = f"{sum(values) / len(values):+.{digits}f}"
    spread = "" if low == high else f"({low} to {high})"
    return " ".join(filter(None, (f"{verdict(values)}:", mean, unit, spread)))
