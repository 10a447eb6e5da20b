"""The HTTP front: the app, its edge, and one file a dialect."""
