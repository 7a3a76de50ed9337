"""What the steps share, a module a topic."""
