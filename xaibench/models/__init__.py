"""Networks, their safe loading and training, and the Classifier that methods and metrics speak to."""
