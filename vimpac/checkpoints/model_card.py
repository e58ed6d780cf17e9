"""The model card of a model directory: `README.md`, which the hub shows as a page.

It is not among the files that have checksums, because everybody may add to it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

CARD = "README.md"
# kind in model.json: (its class, what it is, the paper)
_VIMPAC = "arxiv.org/abs/2106.11250"
_SIMVTP = "arxiv.org/abs/2212.03490"
_KINDS = {
    "vimpac": ("Vimpac", "Pre-trained on tokens of videos", _VIMPAC),
    "classifier": ("VideoClassifier", "A classifier of videos", _VIMPAC),
    "attentive_classifier": ("AttentiveClassifier", "An attentive probe of videos", _VIMPAC),
    "simvtp": ("SimVTP", "Pre-trained on videos and their captions", _SIMVTP),
    "simvtp_dual": ("DualEncoder", "Finds videos by text and text by videos", _SIMVTP),
}
_MODULES = {"AttentiveClassifier": "vimpac.model.attentive"}
_TASKS = {"classifier": "video-classification", "attentive_classifier": "video-classification"}


def model_card(description: Any, model: nn.Module, name: str) -> str:
    """The text of a model card.

    Args:
        description: A dataclass with the fields `kind` and `config`, a dataclass, and perhaps
            `data` and `classes`.
        model: The model, whose parameters are counted.
        name: Of the model on the hub.
    """
    kind, parameters = description.kind, sum(p.numel() for p in model.parameters())
    of, what, paper = _KINDS[kind]
    simvtp = kind.startswith("simvtp")
    module = _MODULES.get(of, "vimpac.simvtp" if simvtp else "vimpac")
    rows = [*dataclasses.asdict(description.config).items(), ("parameters", f"{parameters:,}")]
    data = getattr(description, "data", None)
    if data is not None:
        rows += [(f"data: {key}", value) for key, value in dataclasses.asdict(data).items()]
    classes = getattr(description, "classes", None)
    if classes is not None:
        rows.append(("classes", f"{len(classes)}, named in model.json"))
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows)
    head = f"pipeline_tag: {_TASKS[kind]}\n" if kind in _TASKS else ""
    return f"""\
---
library_name: vimpac-kernels
{head}tags:
- video
- {"simvtp" if simvtp else "vimpac"}
---

# {of}

{what}, with vimpac_kernels ([{"SimVTP" if simvtp else "VIMPAC"}](https://{paper})).

```python
from {module} import {of}

model = {of}.from_pretrained("{name}")  # or a directory with these files
```

| setting | value |
|---|---|
{table}
"""


def _cell(value: object) -> str:
    """A value in a cell of a table."""
    text = " x ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return f"`{text}`".replace("|", "\\|") if text else ""
