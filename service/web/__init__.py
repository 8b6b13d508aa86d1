"""HTTP concerns that do not depend on the model: middleware, problems, authentication, logging, protocol limits."""
