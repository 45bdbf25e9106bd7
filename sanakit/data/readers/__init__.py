"""Readers of image data sets: one file per format. A reader plans the parts of a data set and fills one part at a
time."""
