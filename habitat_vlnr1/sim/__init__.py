"""What a worker process registers with Habitat: dataset, sensors, measures and the vectorised environment."""
