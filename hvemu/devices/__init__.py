"""Chips. Each knows its registers and five injected ports, and nothing of the bus, the CPU or another chip."""
