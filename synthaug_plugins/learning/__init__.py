"""What is learned before generating."""
