"""select and route arranged for XLA:CPU. Without this folder everything works, only slower on a CPU.

XLA:CPU makes slow loops of two things that the plain algorithm does. It reads everything once for each array that it
writes, so values and winners take two passes; and it compiles padding into a branch for each element. Each trick here
has its reason, and the measurement that keeps it, where it stands.
"""

from functools import partial

from jpool.pooling import primitives
from jpool.pooling.backward import gather
from jpool.pooling.cpu.backward import route
from jpool.pooling.cpu.forward import ARRANGEMENT, largest, select

OPERATIONS = primitives.Operations(select, largest, route, partial(gather, arrangement=ARRANGEMENT))
primitives.PLATFORMS["cpu"] = OPERATIONS
