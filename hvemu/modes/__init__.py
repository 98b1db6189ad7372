"""The techniques. Each runs the same guest; the machine never asks which one it is."""
