"""Other toolkits' models, read safely."""
