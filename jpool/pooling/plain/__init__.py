"""The plain algorithm: forward and backward, on every device."""
