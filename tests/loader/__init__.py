"""Tests of the loaders, of the firmware they start from, and of the BIOS services."""
