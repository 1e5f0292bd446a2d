"""What the attentions of a transformer hand on, from the patches to the token that is read."""
