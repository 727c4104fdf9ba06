"""Running batches through the model: teacher-forced scoring in `scoring`, generation in `loop`."""
