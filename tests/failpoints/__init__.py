"""Faults on purpose, at every place where ablate writes."""
