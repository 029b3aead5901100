"""Beam pipelines: preprocessing and bulk captioning."""
