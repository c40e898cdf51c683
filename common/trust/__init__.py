"""Who a node is, and how its messages are signed and sealed."""
