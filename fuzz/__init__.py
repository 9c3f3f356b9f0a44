"""Fuzz targets for every parser and for the state machine, with a corpus that the tests replay."""
