"""select and route arranged for XLA:CPU. Without this folder everything works, only slower on a CPU.

XLA:CPU makes slow loops of three things in the plain algorithm. It computes each array in a loop of its own, so values
and winners read everything twice; it compiles padding into a branch for each element; and a reduction of two operands
is a slow loop, and one by `lax.max` loses NaNs. Every trick here has its reason and the measurement that justifies it
beside it.
"""

from functools import partial

from jpool.pooling.cpu.backward import route
from jpool.pooling.cpu.forward import ARRANGEMENT, select, select_values
from jpool.pooling.derivative import primitives
from jpool.pooling.plain.backward import gather

OPERATIONS = primitives.Operations(select, select_values, route, partial(gather, arrangement=ARRANGEMENT))
primitives.PLATFORMS["cpu"] = OPERATIONS
