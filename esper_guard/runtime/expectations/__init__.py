"""What memory formats are expected of arguments, results and models."""
