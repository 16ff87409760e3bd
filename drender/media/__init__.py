"""Media: reading and writing of images, videos and G-buffers, and the meaning of their values."""
