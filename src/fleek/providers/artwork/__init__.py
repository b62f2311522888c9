"""What the demo provider's pictures are made of: a canvas, palettes, subjects and scenes."""
