"""What a run will need: its sizes and its GPU memory."""
