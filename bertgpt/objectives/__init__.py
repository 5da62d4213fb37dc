"""What a run minimises: pure functions of (apply, params, batch, key). Never imports a model."""
