"""What is done to inputs: fills, the imputer, many changed versions of an image."""
