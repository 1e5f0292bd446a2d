"""What is done to inputs: fills, the imputer, images perturbed in many ways."""
