"""Names of exception vectors."""

VECTOR_NAMES = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 9: "coprocessor overrun",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM",
}  # fmt: skip
"""SDM vol. 3A, table 6-1."""


def vector_name(vector: int) -> str:
    """``#GP`` for 13; ``vector 0x80`` for what has no name."""
    return VECTOR_NAMES.get(vector, f"vector {vector:#04x}")
