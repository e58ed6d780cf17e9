"""Tables of what pre-training learns, from the result files of learning.py, learning_simvtp.py."""

from __future__ import annotations

from typing import Any


def learning_tables(results: dict[str, Any]) -> list[str]:
    """Markdown: what each test reads off each model, and the final losses."""
    rows, chance = results["rows"], results["chance"]

    def mean(mask: str, key: str) -> float:
        return sum(row["training"][mask][key] for row in rows) / len(rows)

    attributes = list(chance["probes"])
    rule = "|---" * (1 + len(attributes)) + "|"
    lines = [f"| read off the frozen model | {' | '.join(attributes)} |", rule]
    for name in rows[0]["probes"]:
        cells = [_percent([row["probes"][name][a] for row in rows]) for a in attributes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = [_percent([chance["probes"][a]]) for a in attributes]
    lines += [f"| chance | {' | '.join(cells)} |", ""]
    lines += ["| masks | mask loss | mask accuracy | contrastive loss |", "|---|---|---|---|"]
    for mask in rows[0]["training"]:
        accuracy = _percent([row["training"][mask]["mask_accuracy"] for row in rows])
        losses = [f"{mean(mask, key):.2f}" for key in ("mask_loss", "cl_loss")]
        lines.append(f"| {mask} | {losses[0]} | {accuracy} | {losses[1]} |")
    commonest = _percent([row["commonest"] for row in rows])
    losses = [f"{chance[key]:.2f}" for key in ("mask_loss", "cl_loss")]
    lines.append(f"| chance | {losses[0]} | {commonest}, the commonest token | {losses[1]} |")
    environment, settings = results["environment"], results["settings"]
    seeds = f"mean (lowest-highest) of {len(rows)} seeds, each" if len(rows) > 1 else "one seed,"
    minutes = sum(row["cpu_minutes"] for row in rows) / len(rows)
    said = (
        f"{settings['steps']} steps on {settings['videos']} videos; {seeds} "
        f"{minutes:.0f} CPU minutes on {environment['device']}, {environment['date']}: "
        f"`{results['command']}`"
    )
    return [*lines, "", said]


def simvtp_tables(results: dict[str, Any]) -> list[str]:
    """Markdown: search by text, and masked words beside the right video and another one."""
    slots = "colour", "shape", "direction"

    def mean(runs: list[dict[str, Any]], key: str) -> float:
        return sum(run[key] for run in runs) / len(runs)

    def cells(runs: list[dict[str, Any]]) -> str:
        found = [_percent([run[key] for run in runs]) for key in ("text to video", "video to text")]
        for slot in slots:
            right, other = (100 * mean(runs, f"{slot}, {beside}") for beside in ("right", "other"))
            found.append(f"{right:.0f} / {other:.0f} %")
        return " | ".join(found)

    heads = ["R@1 text to video", "R@1 video to text", *(f"{s}, right / other" for s in slots)]
    first = next(iter(results["rows"].values()))
    chance = _percent([results["chance"]])
    lines = [
        f"| trained with | {' | '.join(heads)} | pixel loss |",
        "|---" * (len(heads) + 2) + "|",
        f"| nothing | {cells([run['never'] for run in first])} | - |",
    ]
    for name, runs in results["rows"].items():
        pixels = mean([run["losses"] for run in runs], "pixel_loss")
        shown = f"{pixels:.2f}" if pixels else "-"
        lines.append(f"| {name} | {cells([run['test'] for run in runs])} | {shown} |")
    lines.append(f"| chance | {chance} | {chance} | {'25 % | ' * len(slots)}0.99 |")
    runs = [run for row in results["rows"].values() for run in row]
    seeds = f"mean (lowest-highest) of {len(first)} seeds" if len(first) > 1 else "one seed"
    environment = results["environment"]
    said = (
        f"{results['settings']['steps']} steps of 32 videos; {seeds}, "
        f"{mean(runs, 'cpu_minutes'):.0f} CPU minutes for each model on {environment['device']}, "
        f"{environment['date']}: `{results['command']}`"
    )
    return [*lines, "", said]


def _percent(values: list[float]) -> str:
    """The mean, and the lowest and highest if they differ."""
    low, high = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
    mean = 100 * sum(values) / len(values)
    return f"{mean:.1f} %" + (f" ({low}-{high})" if low != high else "")
