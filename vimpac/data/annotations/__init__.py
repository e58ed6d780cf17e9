"""The classes and splits of videos, as data sets and users write them down."""
