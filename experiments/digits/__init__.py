"""Handwritten digits and the networks that classify them: data, layers, LeNet, the training loop, and figures."""
