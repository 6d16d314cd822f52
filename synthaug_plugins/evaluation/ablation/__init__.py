"""Comparisons that start from a data folder: shots drawn, words and erasures learned, stores generated, arms trained, all shots in one table."""
