"""The network: encoder, heads, and the pre-training losses on top of them."""
