"""What is computed: activations, losses, initializers and the networks made of them."""
