"""Versions of a data set on the Hugging Face Hub: its card, publishing, verifying, rolling back, withdrawing."""
