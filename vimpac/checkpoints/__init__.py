"""Models and runs on disk, ours and the released ones."""
