"""What the published methods measure of a network: of its weights, and of what its channels are worth."""
