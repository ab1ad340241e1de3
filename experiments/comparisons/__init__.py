"""Compared with the mean of per-example gradients: Caffe's arithmetic in NumPy, and three shortcuts."""
