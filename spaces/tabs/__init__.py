"""The tabs of the Space, one file each: a class with its endpoints as methods and its layout."""
