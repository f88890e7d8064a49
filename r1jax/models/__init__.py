"""Model families over one decoder and shared layers; r1jax.weights loads them."""
