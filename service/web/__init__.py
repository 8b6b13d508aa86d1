"""HTTP concerns that do not depend on the model: middleware, problems, bodies, keys, logging."""
