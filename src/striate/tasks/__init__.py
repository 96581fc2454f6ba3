"""What a network is asked to produce: head, loss, decode, score."""
