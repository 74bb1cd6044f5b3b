"""What `sample` draws: people, figures, scenes. Numbers and strokes, no files."""
