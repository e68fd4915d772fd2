"""The commands of `mtljax`, each imported when it runs, and `parser`, their arguments. Imports everything."""
