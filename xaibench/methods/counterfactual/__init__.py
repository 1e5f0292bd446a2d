"""What a network that runs backwards says of itself: its counterfactuals and its concepts."""
