"""What the network answers when what a map ranks is removed or added."""
