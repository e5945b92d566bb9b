"""Benchmarks of quality and speed. Not installed into Slicer."""
