"""What is minimised: sums with their weights."""
