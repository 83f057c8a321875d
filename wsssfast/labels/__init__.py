"""Pseudo-labels: rules that turn CAMs into masks, what refines them, and runs over a data set."""
