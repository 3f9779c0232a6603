"""What a checkpoint is made of; see README.md, "The tree"."""

from .registration import register

register()
