"""What is computed: activations, connections, losses, initializers, and the networks made of them."""
