"""The model side: checkpoints, inputs, decoding and the tiny offline model. Knows Transformers, never Habitat."""
