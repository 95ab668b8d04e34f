"""What a recipe needs, measured before its data and its days are spent."""
