"""A cluster of three nodes on one machine that shows what stsync does and proves it."""
