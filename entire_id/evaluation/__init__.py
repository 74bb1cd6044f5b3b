"""Embeddings → re-identification scores."""
