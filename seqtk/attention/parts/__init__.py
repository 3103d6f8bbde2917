"""What attention layers are made of. The parts know one another and `base`, and no layer."""
