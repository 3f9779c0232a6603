"""What every stage reads and writes: images, code shards, class names, files that appear whole."""
