"""Per-example gradients, their mean, their statistics, and training. Independent of `jpool.pooling`.

Read in this order; each module imports only modules above it:

    inputs        the arguments, checked
    devices       the batch axis over the devices of a mesh
    convolutions  every convolution with channels last, for two faults of XLA
    microbatches  a batch processed in parts, to save memory
    gradients     the gradient of every example, and their mean
    statistics    what the gradients of a batch have in common, and how they differ
    training      one training step
"""
