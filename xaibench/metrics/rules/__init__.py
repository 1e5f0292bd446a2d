"""Whether the rules of modified backpropagation forget the layers above."""
