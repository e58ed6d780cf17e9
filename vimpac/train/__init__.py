"""Pre-training and fine-tuning: configuration, step, checkpoints, logs."""
