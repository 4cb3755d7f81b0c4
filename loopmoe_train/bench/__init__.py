"""Benchmarks, one module each: `loopmoe bench NAME`."""
