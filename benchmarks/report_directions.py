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
SPATIAL, TEMPORAL = ("colour", "shape"), ("direction", "speed")
Seed = dict[str, dict[str, Any]]  # the rows of one seed by model


def _probed(row: dict[str, Any], attributes: tuple[str, ...] = SPATIAL + TEMPORAL) -> float:
    """The mean accuracy of the probes, in %."""
    return 100 * sum(row["probes"][name] for name in attributes) / len(attributes)


def _log(row: dict[str, Any], key: str) -> float:
    return row["training"][key]


def _gain(rows: Seed, more: str, less: str, of: tuple[str, ...] = SPATIAL + TEMPORAL) -> float:
    """How many points better one model's probes are than another's."""
    return _probed(rows[more], of) - _probed(rows[less], of)


def _mask_points(rows: Seed, more: str, less: str) -> float:
    """How many points higher one model's mask accuracy is than another's."""
    return 100 * (_log(rows[more], "mask_accuracy") - _log(rows[less], "mask_accuracy"))


def _cl_drop(rows: Seed, high: str, low: str) -> float:
    """How much lower one model's contrastive loss is than another's."""
    return _log(rows[high], "cl_loss") - _log(rows[low], "cl_loss")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A difference whose sign the paper's numbers give.

    Attributes:
        text: The claim.
        paper: Where, and the numbers.
        unit: Of the difference.
        models: What it compares.
        measure: The difference in one seed; positive is the paper's direction.
    """

    text: str
    paper: str
    unit: str
    models: tuple[str, ...]
    measure: Callable[[Seed], float]


def _probe_claim(text: str, paper: str, more: str, less: str) -> Claim:
    return Claim(text, paper, "points", (more, less), lambda rows: _gain(rows, more, less))


CLAIMS = (
    _probe_claim("Masked prediction helps", "Table 7: 68.3 > 41.3", "masks only", NEVER),
    _probe_claim("The contrastive loss helps", "Table 7: 57.1 > 41.3", "contrast only", NEVER),
    _probe_claim(
        "Masked prediction helps more than the contrastive loss",
        "Table 7: 68.3 > 57.1",
        "masks only",
        "contrast only",
    ),
    _probe_claim(
        "Both help more than masked prediction", "Table 7: 69.4 > 68.3", "both", "masks only"
    ),
    Claim(
        "Masked prediction leads the contrastive loss by more on temporal labels",
        "Table 7: SSV2 and Diving48 by 9.9, UCF101, HMDB51 and K400 by 7.5",
        "points",
        ("masks only", "contrast only"),
        lambda rows: (
            _gain(rows, "masks only", "contrast only", TEMPORAL)
            - _gain(rows, "masks only", "contrast only", SPATIAL)
        ),
    ),
    Claim(
        "Block masks are harder to fill in than iid masks",
        "Table 8: mask accuracy 17.6 < 24.3",
        "points",
        ("masks only, iid", "masks only"),
        lambda rows: _mask_points(rows, "masks only, iid", "masks only"),
    ),
    _probe_claim(
        "Block masks teach more than iid masks",
        "Table 8: 68.3 > 63.5",
        "masks only",
        "masks only, iid",
    ),
    _probe_claim(
        "Masks as an augmentation hurt the contrastive loss alone",
        "Table 12: 55.5 < 57.1",
        "contrast only",
        "contrast only, masked",
    ),
    _probe_claim(
        "With masked prediction, masked clips serve the contrastive loss better",
        "Table 12: 69.4 > 67.4",
        "both",
        "both, contrast whole",
    ),
    Claim(
        "The contrastive loss falls with the distance of its clips",
        "Table 10: 1.06 > 0.61 (10 s)",
        "",
        ("both", "d_max 0.25 s"),
        lambda rows: _cl_drop(rows, "both", "d_max 0.25 s"),
    ),
    Claim(
        "It is lowest where both clips are the same",
        "Table 10: 0.61 > 0.41",
        "",
        ("d_max 0.25 s", "d_max 0"),
        lambda rows: _cl_drop(rows, "d_max 0.25 s", "d_max 0"),
    ),
    Claim(
        "Mask accuracy is higher where both clips are the same",
        "Table 10: 17.5 > 17.2",
        "points",
        ("d_max 0", "both"),
        lambda rows: _mask_points(rows, "d_max 0", "both"),
    ),
    _probe_claim(
        "Clips at any distance teach more than the same clip twice",
        "Table 10: 69.4 > 66.7",
        "both",
        "d_max 0",
    ),
    _probe_claim(
        "Axial attention learns more than dense attention", "Table 13: 69.4 > 65.9", "both", "THW"
    ),
    _probe_claim("T,HW learns more than dense attention", "Table 13: 69.0 > 65.9", "T,HW", "THW"),
    _probe_claim("T,H,W learns more than T,H|W", "Table 13: 69.6 > 69.4", "T,H,W", "both"),
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
    attributes = SPATIAL + TEMPORAL
    lines = [
        "| model | settings | mask accuracy | contrastive loss | "
        f"{' | '.join(attributes)} | mean |",
        "|---" * (5 + len(attributes)) + "|",
    ]
    for name, words in MODELS.items():
        own = [row for row in rows if row["model"] == name]
        if own:
            lines.append(_model_row(name, words, own))
    lines += ["", "| the paper says | where | difference here | holds here |", "|---|---|---|---|"]
    for claim in CLAIMS:
        complete = [seed for seed in seeds.values() if {*claim.models} <= {*seed}]
        if complete:
            found = [claim.measure(seed) for seed in complete]
            text, difference = claim.text.replace("|", "\\|"), _signed(found, claim.unit)
            lines.append(f"| {text} | {claim.paper} | {difference} | {verdict(found)} |")
    minutes = sum(row["cpu_minutes"] for row in rows)
    places = sorted({(r["environment"]["device"], r["environment"]["date"]) for r in rows})
    said = (
        f"{settings['steps']} steps of {settings['videos']} videos; mean (lowest to highest) of "
        f"{len(seeds)} seeds; {minutes:.0f} CPU minutes in all on "
        f"{' and '.join(', '.join(place) for place in places)}: `{results['command']}`"
    )
    return [*lines, "", said]


def _model_row(name: str, words: list[str], rows: list[dict[str, Any]]) -> str:
    shown = " ".join(words).format(ratio="as many").replace("|", "\\|")
    cells = [name.replace("|", "\\|"), f"`{shown}`" if shown else "-"]
    trained = [row["training"] for row in rows if row["training"]]
    predicts = trained and "loss.mask=0" not in words
    contrasts = trained and "loss.alpha=0" not in words
    cells.append(_spread([100 * t["mask_accuracy"] for t in trained], 1, " %") if predicts else "-")
    cells.append(_spread([t["cl_loss"] for t in trained], 2) if contrasts else "-")
    for attribute in SPATIAL + TEMPORAL:
        cells.append(_spread([_probed(row, (attribute,)) for row in rows], 1, " %"))
    cells.append(_spread([_probed(row) for row in rows], 1, " %"))
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float], digits: int, unit: str = "") -> str:
    """The mean, and the lowest and highest if they differ."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    mean = f"{sum(values) / len(values):.{digits}f}{unit}"
    return mean if low == high else f"{mean} ({low} to {high})"


def _signed(values: list[float], unit: str) -> str:
    digits = 1 if unit else 2
    low, high = f"{min(values):+.{digits}f}", f"{max(values):+.{digits}f}"
    mean = f"{sum(values) / len(values):+.{digits}f}"
    return " ".join(filter(None, (mean, unit, "" if low == high else f"({low} to {high})")))
