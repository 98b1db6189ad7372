"""What the guest believes of its CPU, and what a CPU does that the engine leaves out: delivery, CPUID, MSRs."""
