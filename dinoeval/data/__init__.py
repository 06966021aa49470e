"""Images and labels: where they come from, and how a picture becomes the pixels a network sees."""
