"""The generation run: from a recipe to a finished store."""
