"""How fast jpool is, compared with other libraries: `python -m experiments.speed`, one command for each measurement."""
