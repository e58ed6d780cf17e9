"""The tables of the paper as runs: vimpac/configs/rows.yaml.

A row is a pre-training and a fine-tuning, given by what differs from the base of all tables, and
the numbers that the paper has for it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from vimpac.errors import UsageError
from vimpac.presets import CONFIGS

# What the paper reports: heading, format. Accuracies of data sets follow, under their own names.
NUMBERS = {
    "masked": ("masked %", ".1f"),
    "parameters": ("parameters, M", ".1f"),
    "speed": ("videos/s", ".1f"),
    "mask_accuracy": ("mask accuracy %", ".1f"),
    "cl_loss": ("CL-Loss", ".2f"),
}
ALSO = {"t1": "t4", "t15": "t9"}  # tables of the paper whose rows stand in another one
ACCURACY = ".1f"  # the format of a data set's accuracy in %


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: Of `--row`, such as "t8.iid128".
        paper: Its numbers: those of `NUMBERS`, and accuracies in % by data set.
        config: The configuration of the pre-training.
        data: The videos that it sees.
        pixels: Of the store, height and width.
        pretrain: Settings of the pre-training; None: the network is trained from scratch.
        continues: The row whose run this one goes on with.
        finetune: Settings of the fine-tuning.
        finetune_pixels: Of its store; None: as in the pre-training.
        protocol: "analysis" (Sec. C.1), "paper" (Table 4) or "scratch", of the fine-tuning.
        note: What the paper says in words.
    """

    name: str
    paper: dict[str, float]
    config: str = "small"
    data: str = "HowTo100M"
    pixels: int = 128
    pretrain: tuple[str, ...] | None = ()
    continues: str | None = None
    finetune: tuple[str, ...] = ()
    finetune_pixels: int | None = None
    protocol: str = "analysis"
    note: str = ""

    @property
    def pretraining(self) -> tuple[Any, ...] | None:
        """What tells its pre-training from those of other rows; None: it has none."""
        if self.pretrain is None:
            return None
        return self.config, self.data, self.pixels, frozenset(self.pretrain), self.continues

    @property
    def finetuning(self) -> tuple[Any, ...]:
        """What tells its fine-tuning from those of other rows."""
        pixels = self.finetune_pixels or self.pixels
        return self.pretraining, frozenset(self.finetune), pixels, self.protocol

    @property
    def settings(self) -> str:
        """What differs from the base of all tables, in words; "-": nothing."""
        words = [] if self.config == "small" else [f"--config {self.config}"]
        words += [self.data] * (self.data != "HowTo100M")
        words += [f"{self.pixels} pixels"] * (self.pixels != 128)
        words += ["from scratch"] if self.pretrain is None else self.pretrain
        tuned = [*self.finetune]
        tuned += [f"{self.finetune_pixels} pixels"] * (self.finetune_pixels is not None)
        return " ".join([*words, *(["then", *tuned] if tuned else [])]) or "-"

    @property
    def datasets(self) -> list[str]:
        """The data sets whose accuracies the paper gives."""
        return [name for name in self.paper if name not in NUMBERS]

    @property
    def out(self) -> str:
        """The directory of its pre-training, unless another one is given."""
        return f"runs/{self.continues or self.name}"

    def pretrain_words(self) -> list[str]:
        """The settings of `vimpac pretrain --row`.

        Raises:
            UsageError: It has no pre-training.
        """
        if self.pretrain is None:
            raise UsageError(
                f"--row {self.name} has no pre-training: use it with `vimpac finetune small`"
            )
        return [f"out={self.out}", *self.pretrain, f"row={self.name}"]

    def finetune_config(self, dataset: str) -> str:
        """The configuration of its fine-tuning on a data set."""
        return dataset if self.protocol == "paper" else f"{dataset}/{self.protocol}"

    def finetune_words(self) -> list[str]:
        """The settings of `vimpac finetune --row`."""
        return [f"out=runs/{self.name}-finetune", *self.finetune, f"row={self.name}"]


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        name: Such as "t8".
        title: What it shows.
        rows: Its rows by name.
    """

    name: str
    title: str
    rows: dict[str, Row]

    @property
    def numbers(self) -> list[str]:
        """Which numbers the paper has in it, in order."""
        known = [key for row in self.rows.values() for key in row.paper]
        return [*dict.fromkeys([key for key in NUMBERS if key in known] + known)]


@functools.cache
def paper_tables() -> dict[str, Table]:
    """All tables by name, in the paper's order."""
    import yaml  # of the extra `train`

    read = yaml.safe_load((CONFIGS / "rows.yaml").read_text(encoding="utf-8"))
    tables = {}
    for name, table in read.items():
        rows = {f"{name}.{row}": values for row, values in table["rows"].items()}
        tables[name] = Table(
            name, table["title"], {row: _row(row, values) for row, values in rows.items()}
        )
    return tables


def _row(name: str, values: dict[str, Any]) -> Row:
    lists: dict[str, Any] = {
        key: None if values[key] is None else tuple(values[key])
        for key in ("pretrain", "finetune")
        if key in values
    }
    return Row(name, **{**values, **lists})


def find_table(name: str) -> Table:
    """A table by its name, or by that of another table of the paper that it stands for.

    Raises:
        UsageError: There is none of that name.
    """
    tables = paper_tables()
    name = ALSO.get(name, name)
    if name not in tables:
        raise UsageError(f"there is no table '{name}': the tables are {', '.join(tables)}")
    return tables[name]


def find_row(name: str) -> Row:
    """A row by its name, such as "t8.iid128".

    Raises:
        UsageError: There is none of that name.
    """
    table = name.partition(".")[0]
    if table not in paper_tables():
        raise UsageError(f"--row {name}: no such row; `vimpac rows` lists the tables")
    rows = find_table(table).rows
    if name not in rows:
        raise UsageError(f"--row {name}: no such row; the rows of {table} are {', '.join(rows)}")
    return rows[name]
