"""Published metrics of G-buffers and rendered clips, and the comparison of two folders of clips."""
