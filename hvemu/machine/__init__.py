"""The machine: configuration in, a wired board out, and the run loop."""
