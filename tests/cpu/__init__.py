"""Tests of the CPU room: delivery, registers, permissions, without an engine."""
