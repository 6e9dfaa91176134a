"""Evaluation of any registered policies on the same episodes, and pictures of what they did."""
