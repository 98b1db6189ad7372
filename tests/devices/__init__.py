"""Tests of the chips, one behaviour each, against fakes of their ports."""
