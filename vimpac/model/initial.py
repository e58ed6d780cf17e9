"""The weights that a model starts from."""

from torch import nn

from vimpac_kernels import AxialAttention


def init_bert(module: nn.Module) -> None:
    """Draws weights of projections and embeddings from N(0, 0.02), biases 0; resets a LayerNorm."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, AxialAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        if module.in_proj_bias is not None:
            nn.init.zeros_(module.in_proj_bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
