"""What the network answers when parts of the input are hidden."""
