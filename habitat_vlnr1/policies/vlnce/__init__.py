"""The classic baselines of VLN-CE (Krantz et al. 2020, "Beyond the Nav-Graph") on Habitat-Baselines' own parts."""
