"""What the steps share: one module per topic, in layers (docs/architecture.md)."""
