"""Seeded small houses with navigation episodes and instructions, for training and tests without a scanned data set."""

from habitat_embedded_sim.houses.dataset import ensure

__all__ = ["ensure"]
