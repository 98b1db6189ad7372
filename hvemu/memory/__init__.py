"""Machine memory, what the guest sees of it, and the walker of guest page tables."""
