"""The policy over a network: a server that decides for several robots or simulators at once, and its thin client."""
