"""Pictures of what a model does, as PNG files."""
