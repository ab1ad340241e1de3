"""Questions with measured answers. They use only what jpool exports, and run as `python -m experiments.NAME`."""
