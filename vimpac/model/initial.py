"""The weights that a model starts from."""

from torch import nn


def init_bert(module: nn.Module) -> None:
    """Draws a Linear or an Embedding from N(0, 0.02), with bias 0; resets a LayerNorm."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
