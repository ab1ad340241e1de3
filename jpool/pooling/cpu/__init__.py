"""Steps of pooling arranged for XLA:CPU. Without this folder everything works, only slower on a CPU.

XLA:CPU makes slow loops of three things in the plain algorithm. It computes each array in a loop of its own, so values
and winners read everything twice; it reads at the indices of a table element by element; and it makes a slow loop of a
reduction of two operands. Every arrangement here has its reason beside it, and the measurement that justifies it.
"""

from jpool.pooling.cpu.backward import route_step
from jpool.pooling.cpu.forward import select_step, select_values
from jpool.pooling.derivative.primitives import define_platform
from jpool.pooling.plain.all_steps import Platform

PLATFORM = Platform(select_step, route_step, select_values=select_values)
define_platform("cpu", PLATFORM)
