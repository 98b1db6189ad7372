"""The hypervisor's half of the paravirtual interface: what hypercalls do, without the CPU that makes them."""
