"""Benchmarks: each runs its peers beside ours, interleaved, and prints ratios; none of them is a test."""
