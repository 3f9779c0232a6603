"""Files of others to ours and back: published checkpoints, codebooks of any library, maps."""
