"""Readers: one file a data set, in the layout in which it is published."""
