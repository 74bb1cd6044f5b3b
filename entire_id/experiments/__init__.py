"""The baseline: a network that is trained on packed data sets, with every setting kept beside the result."""
