"""What growing saves: every method on the same tasks, each at its own best learning rate, over seeds."""
