"""Long training runs: several devices and processes, checkpoints, interruption and resumption, progress reports."""
