"""The search of strength, mixing ratio and guidance on validation: what is tried, the comparison that it is, the recipe with the winner."""
