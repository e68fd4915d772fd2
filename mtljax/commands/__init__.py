"""Commands of `mtljax` that are more than a few lines, imported when they run. Imports everything."""
