"""Few-shot tuning of CLIP in feature space: the baselines, and the table and the curve that compare them. `baselines.BASELINES` is the door."""
