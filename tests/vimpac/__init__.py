"""Tests of the model, its data, its training, its evaluation and its commands."""
