"""The model server: admission, batching queue, engine, bundle loading."""
