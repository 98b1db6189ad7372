"""Tests of guest memory and of the page walker."""
