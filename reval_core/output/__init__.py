"""What leaves reval for people and programs: text that acts on no terminal, and JSON that every parser takes."""
