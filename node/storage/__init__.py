"""What a node keeps on disk: the batches of all logs in the order of their admission, and the post it holds."""
