"""Shards → rows, pixels and embeddings."""
