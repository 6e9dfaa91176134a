"""Stand-in for `corrade`: Habitat-Lab imports it and uses nothing of it in navigation."""
