"""Readers of point cloud and mesh files, one a format; `reading.py` chooses among them by the bytes."""
