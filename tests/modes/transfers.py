"""Loops of jumps, calls and returns that the translator chains: for small kernels, with a count in ECX."""

from tests.modes.small_kernel import PASS

FUNCTIONS = "f0: 40 c3 f1: 05$11 c3 f2: 29c8 c3 f3: 31c8 c3 t: =f0=f1=f2=f3"
HOT = {
    "a conditional jump": f"top: 01c8 49 75~top {PASS}",
    "LOOP": f"top: 01c8 e2~top {PASS}",
    "a call and a return": f"top: e8>f 49 75~top {PASS} f: 01c8 c3",
    "a call through memory": f"top: 89ca 83e203 ff1495=t 49 75~top {PASS} {FUNCTIONS}",
    "a call through a register": f"top: 89ca 83e203 8b1495=t ffd2 49 75~top {PASS} {FUNCTIONS}",
    "a call through ECX": f"top: 51 83e103 8b0c8d=t ffd1 59 49 75~top {PASS} f0: 40 c3 f1: 42 c3 f2: 29d8 c3 f3: 43 c3"
    " t: =f0=f1=f2=f3",
    "a jump through a register": f"top: 89ca 83e203 8b1495=t ffe2 back: 49 0f85>top {PASS}"
    " f0: 40 eb~back f1: 05$11 eb~back f2: 29c8 eb~back f3: 31c8 eb~back t: =f0=f1=f2=f3",
}
"""No transfer has more targets than there are hints."""
