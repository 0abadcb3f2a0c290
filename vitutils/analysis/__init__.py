"""What a trained network does and why: its attention, its features, what a moved image changes."""
