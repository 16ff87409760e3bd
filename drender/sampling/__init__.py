"""Behind `sample.py`: clips in, G-buffers and relit clips out, with resumable results on disk."""
