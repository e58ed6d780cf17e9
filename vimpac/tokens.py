"""The token ids that the model knows."""

NUM_TOKENS = 8192  # the tokenizer's vocabulary
PAD_TOKEN = 8193  # where a video has no frame
MASK_TOKEN = 8196
EMBEDDING_ROWS = 8197  # rows 8192, 8194 and 8195 are unused
