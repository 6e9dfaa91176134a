"""Stages of VLN-R1 as Habitat-Baselines trainers: export, supervised and reinforcement fine-tuning."""
