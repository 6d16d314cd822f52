"""Evaluation: comparisons at equal compute, and the report on them. `compare.compare` and `report.write_report` are the doors."""
