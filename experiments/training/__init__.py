"""The main job's training run: its steps and reports, checkpoints, devices and processes, and what stops it early."""
