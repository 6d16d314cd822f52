"""Prompts: class-name tables and templates, language enhancement, prompts that name no class. Knows nothing of images."""
