"""What a trained model is worth: probes and evaluations."""
