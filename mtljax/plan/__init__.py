"""What a program costs on machines that are not there: compilers run ahead of time and read.

`targets` (which machines), `compiler` (a program compiled for one: `lowering` here, `child` in a process of its own,
`results`), `hlo` (what a compiled program says: `buffers`, `products`, read with `hlo_text`). Imports the cache
directory of `data` and errors; knows nothing of methods, training and commands.
"""
