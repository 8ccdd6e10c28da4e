"""Compiles workloads ahead of time, for chips that are not there, and reports what they would need."""
