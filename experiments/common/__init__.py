"""Shared by the experiments: options and checked claims, timing, the style of figures, and the poolings to time."""
