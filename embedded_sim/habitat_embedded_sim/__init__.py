"""A stand-in for `habitat_sim`, `magnum` and `corrade` that covers what navigation in Habitat-Lab needs.

Nothing is imported here: the `.pth` file of this distribution imports this package at every interpreter start.
"""
