"""Experiments with measured results, run as `python -m experiments.NAME`. They use only what jpool exports."""
