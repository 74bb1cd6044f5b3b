"""Samples → shards: plan, pack, index, manifest, verify."""
