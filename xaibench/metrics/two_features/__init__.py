"""Inputs of two features, whose truth is a closed form."""
