"""Training steps of well-known networks, shortened, each with its framework's pooling or with jpool's."""
