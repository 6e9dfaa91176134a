"""Policies in Habitat-Baselines' registry: the model, scripted ones, mixtures, and recurrent baselines."""
