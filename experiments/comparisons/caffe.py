"""Caffe's arithmetic in NumPy, written as closely to its sources as possible: the reference of `caffe_parity`.

Pooling follows src/caffe/layers/pooling_layer.cpp (`LayerSetUp`, `Reshape`, `Forward_cpu`, `Backward_cpu`), the solver
src/caffe/solver.cpp (`Step`) and src/caffe/solvers/*.cpp (`ApplyUpdate` and what it calls, in the same order).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

LOWEST = -float(np.finfo(np.float32).max)  # -FLT_MAX, the value of a window without elements
Pair = tuple[int, int]


def pooled_sizes(sizes: Pair, kernel: Pair, stride: Pair, pad: Pair) -> list[int]:
    """Numbers of windows, rounded up; with padding, the last must start inside the image or the padding before it."""
    pooled = []
    for size, k, s, p in zip(sizes, kernel, stride, pad, strict=True):
        count = int(np.ceil((size + 2 * p - k) / s)) + 1
        pooled.append(count - 1 if any(pad) and (count - 1) * s >= size + p else count)
    return pooled


def max_pool(x: np.ndarray, kernel: Pair, stride: Pair = (1, 1), pad: Pair = (0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """Values and mask of x (channels, height, width); the mask is the winner's flat index y * width + x, or -1."""
    _, *sizes = x.shape
    values = np.full((len(x), *pooled_sizes((sizes[0], sizes[1]), kernel, stride, pad)), LOWEST, x.dtype)
    mask = np.full(values.shape, -1)
    for at in np.ndindex(*values.shape):
        c, *starts = at[0], at[1] * stride[0] - pad[0], at[2] * stride[1] - pad[1]
        ends = [min(start + k, size) for start, k, size in zip(starts, kernel, sizes, strict=True)]
        for h in range(max(starts[0], 0), ends[0]):
            for w in range(max(starts[1], 0), ends[1]):
                if x[c, h, w] > values[at]:
                    values[at], mask[at] = x[c, h, w], h * sizes[1] + w
    return values, mask


def route(mask: np.ndarray, ct: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The backward pass: every cotangent, the gradient of a value, is added at the flat index in its mask."""
    gradient = np.zeros(shape, ct.dtype)
    for c, *at in np.argwhere(mask >= 0):
        gradient[(c, *np.unravel_index(mask[c, *at], shape[1:]))] += ct[c, *at]
    return gradient


@dataclass
class Solver:
    """SGD, AdaGrad or RMSProp over all parameters in one array; the fields are those of caffe.proto."""

    type: str
    params: np.ndarray
    base_lr: float
    gamma: float = 1.0  # of the policy "step"
    stepsize: int = 1
    momentum: float = 0.0  # which Caffe refuses for AdaGrad and RMSProp
    weight_decay: float = 0.0
    clip_gradients: float = -1.0  # negative: no clipping
    rms_decay: float = 0.99
    delta: float = 1e-8
    iter: int = 0
    clipped: int = 0  # in how many iterations
    history: Any = 0.0  # then an array like params

    def step(self, diffs: list[np.ndarray]) -> None:
        """One iteration with `iter_size` = len(diffs); each diff is the derivative of the mean loss of a sub-batch."""
        diff = np.sum(diffs, 0)
        if 0 < self.clip_gradients < (norm := np.sqrt(np.sum(diff**2))):  # ClipGradients, of the sum
            diff, self.clipped = diff * (self.clip_gradients / norm), self.clipped + 1
        diff = diff / len(diffs)  # Normalize
        diff = diff + self.weight_decay * self.params  # Regularize
        rate = self.base_lr * self.gamma ** (self.iter // self.stepsize)  # GetLearningRate
        self.params = self.params - self.update_value(diff, rate)
        self.iter += 1

    def update_value(self, diff: np.ndarray, rate: float) -> np.ndarray:
        """ComputeUpdateValue."""
        if self.type == "SGD":
            self.history = rate * diff + self.momentum * self.history
            return self.history
        if self.type == "AdaGrad":
            self.history = self.history + diff**2
        else:
            self.history = self.rms_decay * self.history + (1 - self.rms_decay) * diff**2
        return rate * diff / (np.sqrt(self.history) + self.delta)
