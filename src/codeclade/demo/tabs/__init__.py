"""The tabs of the app, one file each: a class with its endpoints as methods and its layout."""
