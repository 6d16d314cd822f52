"""The one-page report of a store: its images, what was rejected, measured and found in it, what trained on it, what it cost, and the commands."""
