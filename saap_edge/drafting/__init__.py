"""A pruned model as draft of its parent: what the parent accepts, and whether that makes it faster on a board."""
